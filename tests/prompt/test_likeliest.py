"""The likeliest words of a run: the quick search finds what the search of all divisions finds."""

import math
from collections.abc import Sequence
from itertools import combinations, pairwise

from hypothesis import example, given
from hypothesis import strategies as st

from vllm_kprune.prompt.likeliest import _LONGEST, DividedWord, Divider, likeliest_parts
from vllm_kprune.prompt.word_lists import UNLISTED_NATS

# Common and rare letters; a long word; and letters that are in no list.
NATS = {
    **{"a": 5.0, "b": 6.5, "c": 11.9, "d": 13.8, "e": 13.7},
    **{"ab": 9.0, "abc": 20.0, "dd": 13.0, "cde": 13.5, "abcabc": 21.0, "xa": 13.0},
}
DIVIDER = Divider({**NATS, "abababaab": 1.0})  # too long to be tried
RUNS = st.text("abcdex", min_size=1, max_size=9)


def nats_of(part: str) -> float:
    """The price of a part, as the module says it."""
    if len(part) > _LONGEST:
        return math.inf
    return NATS.get(part, UNLISTED_NATS + 12.0 * (len(part) - 1))


def assert_likeliest(run: str, parts: Sequence[DividedWord]) -> None:
    def price(cuts: tuple[int, ...]) -> float:
        edges = (0, *cuts, len(run))
        return sum(nats_of(run[a:b]) for a, b in pairwise(edges))

    inner = range(1, len(run))
    least = min(price(cuts) for n in range(len(run)) for cuts in combinations(inner, n))
    assert "".join(word for word, _ in parts) == run
    assert math.isclose(sum(nats_of(word) for word, _ in parts), least)
    assert [nats for _, nats in parts] == [NATS.get(word, UNLISTED_NATS) for word, _ in parts]


@given(RUNS)
def test_no_division_has_fewer_nats(run: str) -> None:
    assert_likeliest(run, likeliest_parts(run, NATS))


@given(RUNS)
@example("acdea")  # cd begins a word and is none
@example("abababaab")  # a word that is too long
def test_the_search_of_listed_words_finds_the_same(run: str) -> None:
    assert DIVIDER.divide(run) == likeliest_parts(run, NATS)
