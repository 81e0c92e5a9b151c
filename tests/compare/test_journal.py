"""The journal keeps what was put, through kills, and never mixes runs."""

import errno
import json
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_kprune.compare.journal import Journal, set_aside
from vllm_kprune.errors import KPruneError

SETTINGS = {"seed": 0, "original": "http://127.0.0.1:1/v1"}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@given(values=st.dictionaries(st.text(min_size=1), JSON, max_size=5))
@settings(max_examples=20)
def test_what_was_put_is_there_after_a_restart(
    values: dict[str, object], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("run")
    with Journal(folder, SETTINGS) as journal:
        for key, value in values.items():
            journal.put("stability", key, value)
    with Journal(folder, SETTINGS) as journal:
        assert {key: journal.get("stability", key) for key in values} == values


@given(cut=st.integers(1, 60))
@settings(max_examples=20)
def test_a_line_that_a_kill_tore_is_dropped_and_written_again(
    cut: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("run")
    with Journal(folder, SETTINGS) as journal:
        journal.put("stability", "first", "안녕하세요")
        whole = (folder / "answers" / "stability.jsonl").stat().st_size
        journal.put("stability", "second", "x" * 60)
    path = folder / "answers" / "stability.jsonl"
    path.write_bytes(path.read_bytes()[:-cut])
    assert path.stat().st_size > whole
    with Journal(folder, SETTINGS) as journal:
        assert journal.get("stability", "first") == "안녕하세요"
        assert journal.get("stability", "second") is None
        journal.put("stability", "second", 2)
    with Journal(folder, SETTINGS) as journal:
        assert journal.get("stability", "second") == 2


def test_a_header_that_a_kill_tore_is_written_again(tmp_path: Path) -> None:
    with Journal(tmp_path, SETTINGS) as journal:
        journal.put("stability", "first", 1)
    path = tmp_path / "answers" / "stability.jsonl"
    path.write_bytes(path.read_bytes()[:20])
    with Journal(tmp_path, SETTINGS) as journal:
        assert journal.get("stability", "first") is None
        journal.put("stability", "first", 2)
    with Journal(tmp_path, SETTINGS) as journal:
        assert journal.get("stability", "first") == 2


def test_a_step_is_made_once(tmp_path: Path) -> None:
    made = []

    def produce() -> list[int]:
        made.append(1)
        return [1, 2]

    for _ in range(2):
        with Journal(tmp_path, SETTINGS) as journal:
            assert journal.step("accuracy", "kmmlu", produce) == [1, 2]
    assert len(made) == 1


def test_other_settings_are_an_error_that_says_what_differs(tmp_path: Path) -> None:
    with Journal(tmp_path, SETTINGS) as journal:
        journal.put("stability", "first", 1)
    with (
        pytest.raises(KPruneError, match=r"seed was 0, now 1.*--fresh"),
        Journal(tmp_path, {**SETTINGS, "seed": 1}),
    ):
        pass


def test_two_runs_do_not_write_to_one_folder(tmp_path: Path) -> None:
    with (
        Journal(tmp_path, SETTINGS),
        pytest.raises(KPruneError, match="another comparison"),
        Journal(tmp_path, SETTINGS),
    ):
        pass


@pytest.mark.parametrize(
    "line", [b"{\n", b"[]\n", b'{"key": "a"}\n', b"[" * 100_000 + b"\n", b"\xff\n"]
)
def test_a_damaged_line_is_told_and_not_guessed(line: bytes, tmp_path: Path) -> None:
    with Journal(tmp_path, SETTINGS) as journal:
        journal.put("stability", "first", 1)
    path = tmp_path / "answers" / "stability.jsonl"
    with path.open("ab") as stream:
        stream.write(line)
    with pytest.raises(KPruneError, match="line 3"), Journal(tmp_path, SETTINGS):
        pass


@pytest.mark.parametrize("header", [b"{}\n", b"null\n", b'{"format": "other", "schema": 1}\n'])
def test_a_file_of_something_else_is_refused(header: bytes, tmp_path: Path) -> None:
    (tmp_path / "answers").mkdir()
    (tmp_path / "answers" / "stability.jsonl").write_bytes(header)
    with pytest.raises(KPruneError, match="--fresh"), Journal(tmp_path, SETTINGS):
        pass


def test_a_run_is_moved_aside_and_nothing_else_is(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert set_aside(folder) is None
    for number in (1, 2):
        with Journal(folder, SETTINGS) as journal:
            journal.put("stability", "first", number)
        assert set_aside(folder) == tmp_path / f"run.{number}"
    kept = (tmp_path / "run.1" / "answers" / "stability.jsonl").read_text().splitlines()
    assert json.loads(kept[1])["value"] == 1
    folder.mkdir()
    (folder / "precious").touch()
    with pytest.raises(KPruneError, match="no answers of a comparison"):
        set_aside(folder)


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(KPruneError, match="cannot be written to"),
        Journal(tmp_path / "file" / "run", SETTINGS),
    ):
        pass


def test_a_full_disk_is_told_and_leaves_whole_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with Journal(tmp_path, SETTINGS) as journal:
        journal.put("stability", "first", 1)
        with monkeypatch.context() as patched:
            patched.setattr(os, "fsync", full)
            with pytest.raises(KPruneError, match="No space left"):
                journal.put("stability", "second", 2)
        assert journal.get("stability", "second") is None
        journal.put("stability", "third", 3)
    with Journal(tmp_path, SETTINGS) as journal:
        kept = [journal.get("stability", key) for key in ("first", "second", "third")]
    assert kept == [1, None, 3]
