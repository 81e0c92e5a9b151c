"""`kprune clean`: what killed runs left, in the cache or in a folder that is named."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def left(tmp_path: Path) -> Path:
    scratch = tmp_path / "builds" / ".enko.kprune-abcd1234"
    (scratch / "new").mkdir(parents=True)
    (scratch / "new" / "weights").write_bytes(bytes(2_000_000))
    return scratch


def test_leftovers_are_shown_and_removed(run: Command, left: Path) -> None:
    code, out, _ = run("clean", left.parent, "--dry-run")
    assert code == 0 and left.is_dir()
    assert "2.0 MB" in out and "1 leftovers, 2.0 MB would be removed" in out.replace("\n", " ")
    code, out, _ = run("clean", left.parent, "--json", "-")
    assert code == 0 and not left.exists()
    assert json.loads(out) == {
        "removed": True,
        "leftovers": [{"path": str(left), "bytes": 2_000_000}],
    }
    code, out, _ = run("clean", left.parent)
    assert code == 0 and "0 leftovers" in out


def test_without_a_folder_the_cache_is_cleaned(
    run: Command, left: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KPRUNE_CACHE", str(left.parent))
    assert run("clean")[0] == 0 and not left.exists()
    monkeypatch.setenv("KPRUNE_CACHE", str(left.parent / "missing"))
    assert run("clean")[0] == 0


def test_a_folder_that_is_missing_is_one_line(run: Command, tmp_path: Path) -> None:
    code, _, err = run("clean", tmp_path / "missing")
    assert code == 2 and "missing" in err and "Traceback" not in err
