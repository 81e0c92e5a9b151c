"""A folder appears complete or not at all, whatever goes wrong while it is made."""

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vllm_kprune.errors import KPruneError
from vllm_kprune.storage.folders import new_file, new_folder, resumable_folder

HOLD = """
import sys, time
from pathlib import Path
from vllm_kprune.storage.folders import new_file, new_folder
with new_folder(Path(sys.argv[1]), "mark") as folder:
    (folder / "mark").write_text(sys.argv[2])
    print("inside", flush=True)
    time.sleep(float(sys.argv[3]))
"""


def make(target: Path, replace_if: str | None = None, text: str = "new") -> None:
    with new_folder(target, replace_if) as folder:
        (folder / "mark").write_text(text)


def left(folder: Path) -> list[str]:
    """What a folder holds, without the locks."""
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".lock")


def test_a_new_folder_appears_at_the_end(tmp_path: Path) -> None:
    target = tmp_path / "a" / "b"
    with new_folder(target) as folder:
        (folder / "mark").write_text("new")
        assert not target.exists()
    assert (left(target), left(target.parent)) == (["mark"], ["b"])


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    make(tmp_path / "out")
    assert left(tmp_path / "out") == ["mark"]


@pytest.mark.parametrize(
    "error", [RuntimeError("x"), KPruneError("x"), KeyboardInterrupt(), OSError(errno.EIO, "x")]
)
def test_an_error_inside_leaves_nothing(tmp_path: Path, error: BaseException) -> None:
    expected = KPruneError if isinstance(error, OSError) else type(error)
    with pytest.raises(expected), new_folder(tmp_path / "out") as folder:
        (folder / "mark").write_text("half")
        raise error
    assert left(tmp_path) == []


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "new" / "file"
    with new_file(target) as stream:
        stream.write(b"one")
        assert not target.exists()
    with pytest.raises(KeyboardInterrupt), new_file(target) as stream:
        stream.write(b"two")
        raise KeyboardInterrupt
    assert target.read_bytes() == b"one"
    assert list(target.parent.iterdir()) == [target]


def test_an_error_inside_leaves_the_old_folder_as_it_was(tmp_path: Path) -> None:
    make(tmp_path / "out", text="old")
    with pytest.raises(RuntimeError), new_folder(tmp_path / "out", "mark") as folder:
        (folder / "mark").write_text("half")
        raise RuntimeError
    assert (tmp_path / "out" / "mark").read_text() == "old"
    assert left(tmp_path) == ["out"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_said_plainly_and_leaves_nothing(tmp_path: Path, code: int) -> None:
    full = pytest.raises(KPruneError, match=r"disk of .* is full, so nothing was kept")
    with full, new_folder(tmp_path / "out") as folder:
        (folder / "mark").write_text("half")
        raise OSError(code, os.strerror(code))
    assert left(tmp_path) == []


def test_an_error_of_another_file_names_that_file(tmp_path: Path) -> None:
    """The output is not to blame for what is read while it is made."""
    blamed = pytest.raises(KPruneError, match=r"/nowhere/corpus.txt: No such file")
    with blamed as caught, new_folder(tmp_path / "out"):
        Path("/nowhere/corpus.txt").read_text()
    assert "cannot write" not in str(caught.value)
    assert left(tmp_path) == []


def test_a_folder_that_is_not_empty_is_refused_unless_forced(tmp_path: Path) -> None:
    make(tmp_path / "out", text="old")
    with pytest.raises(KPruneError, match=r"is not empty; .*--force"):
        make(tmp_path / "out")
    assert (tmp_path / "out" / "mark").read_text() == "old"
    make(tmp_path / "out", "mark")
    assert (tmp_path / "out" / "mark").read_text() == "new"
    assert left(tmp_path) == ["out"]


def test_force_does_not_replace_what_kprune_did_not_make(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("years of work")
    with pytest.raises(KPruneError, match=r"did not make \(there is no mark\), so --force"):
        make(tmp_path / "out", "mark")
    assert left(tmp_path / "out") == ["thesis.txt"]


def test_what_appears_in_the_target_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    target = tmp_path / "out"
    with pytest.raises(KPruneError, match="is not empty"), new_folder(target) as folder:
        (folder / "mark").write_text("new")
        target.mkdir()
        (target / "thesis.txt").write_text("years of work")
    assert (left(target), left(tmp_path)) == (["thesis.txt"], ["out"])


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("x")
    with pytest.raises(KPruneError, match="is a file; name a folder"):
        make(tmp_path / "out", "mark")
    with pytest.raises(KPruneError, match="out"):
        make(tmp_path / "out" / "below")
    assert (tmp_path / "out").read_text() == "x"


@pytest.mark.parametrize("length", [250, 300])
def test_a_name_that_is_too_long_is_an_error_of_the_users(tmp_path: Path, length: int) -> None:
    with pytest.raises(KPruneError, match="File name too long"):
        make(tmp_path / ("a" * length))


def _start(target: Path, text: str, seconds: float) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", HOLD, str(target), text, str(seconds)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def _wait_inside(process: "subprocess.Popen[str]") -> None:
    assert process.stdout is not None
    assert process.stdout.readline() == "inside\n"


@pytest.mark.parametrize("name", ["out", "out[1]"])
def test_a_killed_run_leaves_the_target_alone_and_the_next_one_sweeps(
    tmp_path: Path, name: str
) -> None:
    target = tmp_path / name
    make(target, text="old")
    with _start(target, "half", 60) as process:
        _wait_inside(process)
        process.send_signal(signal.SIGKILL)
    assert (target / "mark").read_text() == "old"
    assert len(left(tmp_path)) == 2
    make(target, "mark")
    assert (left(tmp_path), (target / "mark").read_text()) == ([name], "new")


def test_two_processes_take_turns_and_both_results_are_whole(tmp_path: Path) -> None:
    target = tmp_path / "out"
    with _start(target, "first", 0.5) as first:
        _wait_inside(first)
        began = time.monotonic()
        make(target, "mark", "second")
        assert time.monotonic() - began > 0.2
    assert first.returncode == 0
    assert ((target / "mark").read_text(), left(tmp_path)) == ("second", ["out"])


def test_the_later_of_two_processes_is_refused_without_force(tmp_path: Path) -> None:
    target = tmp_path / "out"
    with _start(target, "first", 0.5) as first:
        _wait_inside(first)
        with pytest.raises(KPruneError, match="is not empty"):
            make(target)
    assert first.returncode == 0
    assert (target / "mark").read_text() == "first"


def test_a_resumable_folder_is_given_again_until_its_block_ends_well(tmp_path: Path) -> None:
    target = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt), resumable_folder(target):
        raise KeyboardInterrupt
    assert left(tmp_path) == []  # nothing was written, so nothing is kept
    with pytest.raises(KeyboardInterrupt), resumable_folder(target) as folder:
        (folder / "half").write_text("done")
        raise KeyboardInterrupt
    assert left(tmp_path) == [".out.unfinished"]
    with resumable_folder(target) as folder:
        assert left(folder) == ["half"]
        (folder / "mark").write_text("done")
    assert left(tmp_path) == ["out"]
    assert left(target) == ["half", "mark"]
    with pytest.raises(KPruneError, match="not empty"), resumable_folder(target):
        pass
    with resumable_folder(target, "mark") as folder:
        (folder / "mark").write_text("again")
    assert left(tmp_path) == ["out"]
    assert left(target) == ["mark"]


@pytest.mark.slow
def test_a_resumable_folder_is_for_one_run_at_a_time(tmp_path: Path) -> None:
    with (
        resumable_folder(tmp_path / "out"),
        pytest.raises(KPruneError, match=r"another run is writing .*out; wait for it"),
        resumable_folder(tmp_path / "out"),
    ):
        pass
