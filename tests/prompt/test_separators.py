"""Numbers stay whole and apart, and words apart, whatever is dropped around them."""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import regex
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support.prompt_cases import UNICODE, GivenScores, pruner_of
from support.tiny_tokenizers import byte_fallback_tokenizer
from tokenizers import Tokenizer

from vllm_kprune.prompt.budget import PruneOptions
from vllm_kprune.prompt.pieces import cut_pieces
from vllm_kprune.prompt.rarity import Rarity
from vllm_kprune.prompt.separators import Separators
from vllm_kprune.prompt.text_pruner import TextPruner

NUMBER = regex.compile(r"\p{Nd}+(?:[.,:]\p{Nd}+)*")
PARTS = (
    "3",
    "14",
    "2024",
    "1.2.3",
    "10:30",
    "٣٤",
    "１２",
    ".",
    ",",
    ":",
    " ",
    "\n",
    "-",
    "..",
    "a",
)
NUMERIC = st.lists(st.sampled_from(PARTS), max_size=24).map("".join)
OPTIONS = st.builds(
    PruneOptions,
    keep=st.sampled_from([0.05, 0.3, 0.5, 0.7, 0.9]),
    target_tokens=st.none() | st.integers(1, 30),
    unit=st.sampled_from(["token", "word"]),
    force_tokens=st.sampled_from([(), (".",)]),
    force_digits=st.booleans(),
)


def numbers(text: str) -> list[str]:
    return NUMBER.findall(text)


def is_subsequence(part: list[str], whole: list[str]) -> bool:
    rest = iter(whole)
    return all(item in rest for item in part)


@pytest.fixture(scope="module", params=["qwen3", "gemma3"])
def tokenizer(
    request: pytest.FixtureRequest, published_tokenizer: Callable[[str], Path]
) -> Tokenizer:
    return Tokenizer.from_file(str(published_tokenizer(request.param)))


@pytest.mark.parametrize("by_rarity", [False, True])
@given(text=NUMERIC | UNICODE, options=OPTIONS)
@settings(max_examples=40)
@pytest.mark.slow
def test_every_number_that_is_left_is_one_of_the_text(
    tokenizer: Tokenizer, by_rarity: bool, text: str, options: PruneOptions
) -> None:
    pruned = pruner_of(tokenizer, Rarity() if by_rarity else None).prune(text, options)
    assert is_subsequence(numbers(pruned.text), numbers(text))
    digits = regex.compile(r"\p{Nd}+")
    assert is_subsequence(digits.findall(pruned.text), digits.findall(text))
    if options.force_digits:
        assert numbers(pruned.text) == numbers(text)


@given(text=NUMERIC, data=st.data())
@example(text="3..5", data=None)
@settings(max_examples=150)
def test_words_and_numbers_stay_apart_however_the_text_is_cut(
    text: str, data: st.DataObject | None
) -> None:
    cuts = data.draw(st.sets(st.integers(0, len(text)))) if data else set(range(len(text)))
    bounds = sorted({0, len(text), *cuts})
    pieces = cut_pieces(text, list(pairwise(bounds)))
    count = len(pieces.starts)
    given = data.draw(st.lists(st.booleans(), min_size=count, max_size=count)) if data else None
    kept = np.array([c in "35" for c in text] if given is None else given, dtype=bool)
    more = Separators(text, pieces).added(kept)
    assert (more | ~kept).all()
    left = "".join(text[pieces.starts[n] : pieces.ends[n]] for n in np.flatnonzero(more))
    assert is_subsequence(numbers(left), numbers(text))
    assert (Separators(text, pieces).added(more) == more).all()
    parts = [text[a:b] for a, b in zip(pieces.starts, pieces.ends, strict=True)]
    for n, m in pairwise(np.flatnonzero(more).tolist()):
        if regex.fullmatch(r"[\p{L}\p{M}\p{N}]{2}", parts[n][-1] + parts[m][0]):
            assert not any(part.isspace() for part in parts[n + 1 : m])


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("3, 5 and 8", "3 5 8"),
        ("2024-11-22", "2024-11-22"),
        ("3a4", "3a4"),
        ("1.2.3 x", "1.2.3"),
        ("3. 5", "3 5"),
        ("Row 1", "1"),
    ],
)
def test_the_least_separator_stays_when_numbers_alone_are_kept(text: str, left: str) -> None:
    offsets = [(n, n + 1) for n in range(len(text))]
    pieces = cut_pieces(text, offsets)
    bounds = zip(pieces.starts, pieces.ends, strict=True)
    digits = [any(c.isdigit() for c in text[a:b]) for a, b in bounds]
    kept = Separators(text, pieces).added(np.array(digits))
    assert "".join(text[pieces.starts[n] : pieces.ends[n]] for n in np.flatnonzero(kept)) == left


def test_separators_count_towards_what_may_be_kept() -> None:
    tokenizer = byte_fallback_tokenizer()
    text = "1 2 3 4 5 6 7 8"
    tokens = pruner_of(tokenizer).tokenize(text)
    scores = [float(text[a:b].strip().isdigit()) for a, b in tokens.offsets]
    pruner: TextPruner = pruner_of(tokenizer, GivenScores(scores))
    pruned = pruner.prune(text, PruneOptions(keep=0.5))
    assert int(pruned.kept.sum()) <= len(tokens.ids) // 2 + 1
    assert numbers(pruned.text) == list("12345678")[: len(numbers(pruned.text))]
    assert len(numbers(pruned.text)) >= 3


@pytest.mark.slow
def test_a_line_end_between_words_stays_if_both_do(
    published_tokenizer: Callable[[str], Path],
) -> None:
    tokenizer = Tokenizer.from_file(str(published_tokenizer("gemma3")))
    text = "rose by some percent.\nRow 1 of Busan\n나무"
    pruned = pruner_of(tokenizer, Rarity()).prune(text, PruneOptions(keep=0.6))
    assert is_subsequence(regex.findall(r"\w+", pruned.text), regex.findall(r"\w+", text))
    assert pruned.text != text
