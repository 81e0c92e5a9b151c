"""Token usage as evidence: what a file must be, and what is named in it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_kprune.errors import KPruneError
from vllm_kprune.vocabulary import usage as usage_module
from vllm_kprune.vocabulary.usage import LEAST_FLOOR, TokenUsage, make_usage, read_usage

SHA = "0" * 64
GOOD: dict[str, Any] = {
    "format": 1,
    "tokenizer_sha256": SHA,
    "vocabulary": 10,
    "floor": 20,
    "requests": 100,
    "tokens": 75,
    "below_floor": {"ids": 3, "tokens": 5},
    "ids": [2, 7],
    "occurrences": [50, 20],
    "in_requests": [40, 20],
}
COUNTS = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)), min_size=1, max_size=30)


def made(counts: list[tuple[int, int]], floor: int = LEAST_FLOOR) -> TokenUsage:
    """Usage of tokens that occur in so many requests, and so many times more."""
    in_requests = np.array([requests for requests, _ in counts], np.uint64)
    more = np.array([more if requests else 0 for requests, more in counts], np.uint64)
    return make_usage(
        in_requests + more, in_requests, requests=60, floor=floor, tokenizer_sha256=SHA
    )


@given(COUNTS, st.integers(LEAST_FLOOR, 50))
def test_tokens_below_the_floor_are_never_named_and_all_others_are(
    counts: list[tuple[int, int]], floor: int
) -> None:
    usage = made(counts, floor)
    named = {i: n for i, (n, _) in enumerate(counts) if n >= floor}
    assert dict(zip(usage.ids, usage.in_requests, strict=True)) == named
    below = [n + more for n, more in counts if 0 < n < floor]
    assert (usage.below_floor.ids, usage.below_floor.tokens) == (len(below), sum(below))
    assert usage.tokens == sum(n + more for n, more in counts if n)
    assert usage.objection() is None


@given(COUNTS)
def test_what_a_server_writes_is_read_back(counts: list[tuple[int, int]]) -> None:
    usage = made(counts)
    assert TokenUsage.model_validate_json(usage.model_dump_json()) == usage


def write(folder: Path, content: Any) -> Path:
    path = folder / "usage.json"
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return path


def test_counts_are_by_id_and_ids_that_the_tokenizer_lacks_have_none(tmp_path: Path) -> None:
    usage = read_usage(write(tmp_path, GOOD))
    assert usage.counts(12).tolist() == [0, 0, 50, 0, 0, 0, 0, 20, 0, 0, 0, 0]
    assert usage.counts(5).tolist() == [0, 0, 50, 0, 0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 2}, "format: Input should be 1"),
        ({"tokenizer_sha256": "x"}, "tokenizer_sha256: "),
        ({"floor": 1}, "floor: Input should be greater than or equal to 20"),
        ({"occurrences": [50, -20]}, r"occurrences\.1: .*greater than or equal to 0"),
        ({"occurrences": [50, 1 << 60]}, r"occurrences\.1: .*less than"),
        ({"occurrences": [50, 20.5]}, r"occurrences\.1: .*integer"),
        ({"occurrences": ["50", 20]}, r"occurrences\.0: .*integer"),
        ({"occurrences": [50]}, "differ in length"),
        ({"ids": [7, 2]}, "ids must increase"),
        ({"ids": [2, 2]}, "ids must increase"),
        ({"ids": [2, 10]}, "id 10 is outside of the vocabulary of 10"),
        ({"in_requests": [40, 19]}, "fewer requests than the floor"),
        ({"in_requests": [51, 20]}, "fewer requests than the floor, or in more"),
        ({"requests": 30}, "in more than there are"),
        ({"tokens": 76}, "do not add up to 76 tokens"),
        ({"vocabulary": 0}, "vocabulary: "),
        ({"text": "hello"}, "text: Extra inputs are not permitted"),
        ({"ids": None}, "ids: "),
    ],
)
def test_a_file_that_contradicts_itself_is_refused_with_the_place(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    path = write(tmp_path, {**GOOD, **changes})
    with pytest.raises(KPruneError, match=message) as caught:
        read_usage(path)
    assert str(path) in str(caught.value)
    assert "expected what GET /kprune/usage" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe",
        b"[" * 100_000,
        b"[]",
        b'{"error": {"message": "Unauthorized", "code": 401}}',
        json.dumps(GOOD).encode()[:-10],
    ],
)
def test_what_is_no_usage_is_refused_in_one_line(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(KPruneError, match="expected what GET /kprune/usage") as caught:
        read_usage(write(tmp_path, content))
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there_or_too_large_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(KPruneError, match="does not exist"):
        read_usage(tmp_path / "none.json")
    with pytest.raises(KPruneError, match="not a file"):
        read_usage(tmp_path)
    monkeypatch.setattr(usage_module, "_MAX_BYTES", 100)
    with pytest.raises(KPruneError, match="larger than"):
        read_usage(write(tmp_path, GOOD))
