"""The likeliest words of a run: the quick search finds what the search of all divisions finds."""

import math
from itertools import combinations, pairwise

from hypothesis import given
from hypothesis import strategies as st

from vllm_kprune.prompt.likeliest import _LONGEST, likeliest_parts
from vllm_kprune.prompt.word_lists import UNLISTED_NATS

# Common and rare letters; a long word; and letters that are in no list.
NATS = {
    **{"a": 5.0, "b": 6.5, "c": 11.9, "d": 13.8, "e": 13.7},
    **{"ab": 9.0, "abc": 20.0, "dd": 13.0, "cde": 13.5, "abcabc": 21.0, "xa": 13.0},
}
BEGUN = frozenset(word[:end] for word in NATS for end in range(1, len(word)))


def nats_of(part: str) -> float:
    """The price of a part, as the module says it."""
    if len(part) > _LONGEST:
        return math.inf
    return NATS.get(part, UNLISTED_NATS + 12.0 * (len(part) - 1))


@given(st.text("abcdex", min_size=1, max_size=9))
def test_no_division_has_fewer_nats(run: str) -> None:
    def price(cuts: tuple[int, ...]) -> float:
        edges = (0, *cuts, len(run))
        return sum(nats_of(run[a:b]) for a, b in pairwise(edges))

    inner = range(1, len(run))
    least = min(price(cuts) for n in range(len(run)) for cuts in combinations(inner, n))
    parts = likeliest_parts(run, NATS)
    assert "".join(run[a:b] for a, b, _ in parts) == run
    assert math.isclose(sum(nats_of(run[a:b]) for a, b, _ in parts), least)
