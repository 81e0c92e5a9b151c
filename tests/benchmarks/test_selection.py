"""`benchmarks/selection.py` goes on where it was stopped, and counts the same as in one go."""

import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
try:
    import selection
finally:
    sys.path.remove(str(BENCHMARKS))


class Stopped(Exception):
    """The run ended in the middle."""


@pytest.fixture
def pair(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Encoders that count characters; the pruned one breaks law 2 where there is an x."""
    from support.tiny_tokenizers import byte_level_tokenizer

    made = selection.Pair.__new__(selection.Pair)
    made.original = made.pruned = byte_level_tokenizer()
    made.kept = tuple(range(made.original.get_vocab_size()))
    made.new_ids = {i: i for i in made.kept}
    monkeypatch.setattr(selection, "BATCH", 3)
    monkeypatch.setattr(selection, "REMEMBERED", 6)
    return made


def count(pair: Any, folder: Path, state: Path | None, most: int | None = None) -> Any:
    return selection.count_texts(pair, {"code": [folder]}, selection.State(state), True, most)[0]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "code").mkdir()
    for name in ("a.py", "b.py"):
        lines = [f"{name} = {n * n}" for n in range(10)]
        (tmp_path / "code" / name).write_text("\n".join(lines))
    return tmp_path / "code"


def test_a_stopped_run_goes_on_and_counts_what_one_run_counts(
    pair: Any, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = count(pair, folder, None)
    assert (whole.lines, whole.violations) == (20, 0)
    assert whole.before == whole.after > 20
    state, read = tmp_path / "state.json", selection.lines_of

    def stopping(path: Path, by_line: bool) -> Any:
        for number, line in enumerate(read(path, by_line)):
            if number == 14:
                raise Stopped
            yield line

    monkeypatch.setattr(selection, "lines_of", stopping)
    with pytest.raises(Stopped):
        count(pair, folder, state)
    (remembered,) = selection.State(state).counts.values()
    assert remembered["lines"] == 12
    monkeypatch.setattr(selection, "lines_of", read)
    assert count(pair, folder, state) == whole


def test_a_finished_run_is_not_counted_again_and_other_tokens_are(
    pair: Any, folder: Path, tmp_path: Path
) -> None:
    state = tmp_path / "state.json"
    first = count(pair, folder, state, most=15)
    assert first.lines == 15
    assert count(pair, folder, state, most=15) == first
    pair.kept = pair.kept[:-1]
    assert count(pair, folder, state, most=15) == first
    assert len(selection.State(state).counts) == 2
