"""Replacing a folder: the old one or the new one is there, wherever a run is killed."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from vllm_kprune.storage import exchange, folders
from vllm_kprune.storage.folders import new_file, new_folder, resumable_folder
from vllm_kprune.storage.leftovers import find_leftovers, remove_leftover

MARK = "mark"
Make = Callable[[Path, str], None]


def replace(target: Path, text: str) -> None:
    with new_folder(target, MARK) as folder:
        (folder / MARK).write_text(text)
        (folder / "file").write_text(text)


def finish(target: Path, text: str) -> None:
    with resumable_folder(target, MARK) as folder:
        for name in (MARK, "file"):
            (folder / name).write_text(text)


def whole(target: Path) -> str | None:
    """The text that all files of a folder have; None if there is no folder."""
    if not target.is_dir():
        return None
    (text,) = {path.read_text() for path in target.iterdir() if path.name != ".kprune-new"}
    return text


def kill_at(number: int, make: Make, target: Path, text: str) -> bool:
    """Run `make` in a process that dies before its `number`th operation; did it?"""
    process = os.fork()
    if process == 0:
        left = [number]

        def counted(original: Callable[..., Any]) -> Callable[..., Any]:
            def run(*args: Any, **how: Any) -> Any:
                left[0] -= 1
                if left[0] < 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                return original(*args, **how)

            return run

        for name in ("rename", "unlink", "rmdir", "mkdir"):
            setattr(os, name, counted(getattr(os, name)))
        exchange._exchange = counted(exchange._exchange)
        make(target, text)
        os._exit(0)
    _, status = os.waitpid(process, 0)
    return os.WIFSIGNALED(status)


@pytest.mark.parametrize("can_exchange", [True, False])
@pytest.mark.parametrize("make", [replace, finish])
@pytest.mark.slow
def test_a_run_killed_anywhere_leaves_the_old_folder_or_the_new_one(
    make: Make, can_exchange: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not can_exchange:
        monkeypatch.setattr(exchange, "_exchange", lambda *_: False)
    deaths = 0
    for number in range(100):
        target = tmp_path / str(number) / "out"
        make(target, "old")
        was_killed = kill_at(number, make, target, "new")
        seen = whole(target)
        if can_exchange:
            assert seen in ("old", "new")
        # Another output beside it: its run cleans up, and puts back what was moved aside.
        replace(target.with_name("other"), "other")
        if make is replace:
            assert whole(target) == (seen or "old")
        make(target, "third")
        assert whole(target) == "third"
        names = {path.name for path in target.parent.iterdir()}
        assert names <= {"out", "other", ".out.lock", ".other.lock"}
        deaths += was_killed
        if not was_killed:
            break
    assert 5 < deaths < 100


@pytest.mark.slow
def test_a_finished_folder_is_never_resumed_as_an_unfinished_one(tmp_path: Path) -> None:
    """Killed while the old folder is removed: the next run must begin from nothing."""
    target = tmp_path / "out"
    finish(target, "old")
    for number in range(100):
        if not kill_at(number, finish, target, "new"):
            break
        with resumable_folder(target, MARK) as folder:
            found = {path.read_text() for path in folder.iterdir()}
            assert found <= {"new"}
            for name in (MARK, "file"):
                (folder / name).write_text("old")
        assert whole(target) == "old"


def test_names_are_exchanged_where_the_system_can(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    assert exchange._exchange(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "a" / "file").read_text() == "b"
    with pytest.raises(FileNotFoundError):
        exchange._exchange(tmp_path / "a", tmp_path / "missing")


def leave(folder: Path, name: str) -> Path:
    """What a killed run leaves of an output."""
    scratch = folder / f".{name}.kprune-abcd1234"
    (scratch / "new").mkdir(parents=True)
    (scratch / "new" / "weights").write_bytes(bytes(1000))
    return scratch


def test_only_leftovers_are_found(tmp_path: Path) -> None:
    mine, below = leave(tmp_path, "a"), leave(tmp_path / "deep" / "down", "b")
    busy = leave(tmp_path, "busy")
    (tmp_path / ".not.kprune-abcd1234").mkdir()
    (tmp_path / ".not.kprune-abcd1234" / "of ours").touch()
    (tmp_path / ".out.unfinished").mkdir()
    (tmp_path / ".link.kprune-abcd1234").symlink_to(mine)
    old, fresh, other = (tmp_path / name for name in ("kprune0123456789abcdef.tmp", "b", "c.tmp"))
    for path in (old, fresh, other):
        path.write_bytes(b"12")
    os.utime(old, (0, 0))
    os.utime(other, (0, 0))
    with new_file(tmp_path / "now") as stream:
        stream.write(b"x")
        with FileLock(tmp_path / ".busy.lock"):
            found = {one.path: one for one in find_leftovers(tmp_path)}
            assert set(found) == {mine, below, old}
            assert found[mine].num_bytes == 1000
            assert all(remove_leftover(one) for one in found.values())
            assert list(find_leftovers(tmp_path)) == []
    assert busy.is_dir() and (tmp_path / "now").read_bytes() == b"x"
    (late,) = find_leftovers(tmp_path)
    with FileLock(tmp_path / ".busy.lock"):
        assert not remove_leftover(late)
    assert remove_leftover(late) and not busy.exists()


def test_a_build_sweeps_what_was_left_beside_it(tmp_path: Path) -> None:
    leave(tmp_path, "other")
    kept = leave(tmp_path, "busy")
    with FileLock(tmp_path / ".busy.lock"):
        replace(tmp_path / "out", "x")
    assert not (tmp_path / ".other.kprune-abcd1234").exists() and kept.is_dir()


def test_the_mark_of_a_folder_that_is_not_in_its_place_is_gone_afterwards(tmp_path: Path) -> None:
    finish(tmp_path / "out", "x")
    assert not (tmp_path / "out" / folders._NEW).exists()
