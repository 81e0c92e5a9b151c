"""Divide a run of letters into its likeliest words, taking words as independent.

The probability of a division is the product of its words', so its nats are their sum. `best[n]` is
the lowest sum for the first n letters. With ab = 9, a = 5 and b = 6 nats, "ab" stays whole (9 < 5 +
6). Chinese and Korean are divided in this way: in Korean, particles follow the noun.
"""

import math
from collections.abc import Mapping, Set

from vllm_kprune.prompt.word_lists import UNLISTED_NATS

__all__ = ["likeliest_parts"]

_LONGEST = 8  # characters of a listed word that is written without spaces
# Each further letter of an unlisted word. Without this price, any 8 letters would be one unlisted
# word for 16 nats, less than two listed words of 9.
_UNLISTED_LETTER_NATS = 12.0


def likeliest_parts(
    run: str, nats: Mapping[str, float], begun: Set[str]
) -> list[tuple[int, int, float]]:
    """(begin, end, nats) of each word; `begun` is what the words of the list begin with.

    A word that is not listed has `UNLISTED_NATS`, however long.

    >>> likeliest_parts("abcab", {"ab": 9.0, "a": 5.0, "b": 6.0, "cab": 8.0}, {"a", "c", "ca"})
    [(0, 2, 9.0), (2, 5, 8.0)]
    """
    count = len(run)
    best, cuts = [0.0] + [math.inf] * count, [0] * (count + 1)
    for at in range(count):
        before = best[at]
        price, listed = UNLISTED_NATS, True
        for end in range(at + 1, min(at + _LONGEST, count) + 1):
            total = price
            if listed:
                part = run[at:end]
                total = nats.get(part, price)
                listed = part in begun
            if before + total < best[end]:
                best[end], cuts[end] = before + total, at
            price += _UNLISTED_LETTER_NATS
    parts = []
    end = count
    while end:
        at = cuts[end]
        parts.append((at, end, nats.get(run[at:end], UNLISTED_NATS)))
        end = at
    return parts[::-1]
