"""What is dropped between two words or numbers never joins them.

Of `3, 5 and 8` neither `35` nor `3,58` may be left, of `Row 1` not `Row1`: what is dropped between
two kept numbers is dropped but for one separator, and so is a blank between words that is a piece
by itself. A number is digits (Unicode's Nd) with single marks between.
"""

from dataclasses import dataclass
from functools import cached_property
from unicodedata import category

import numpy as np
import numpy.typing as npt
import regex

from vllm_kprune.prompt.pieces import Pieces

__all__ = ["Separators"]

_DIGIT = regex.compile(r"\p{Nd}")
_JOINS = frozenset(("", ".", ",", ":"))  # between digits: one number

Booleans = npt.NDArray[np.bool_]
Integers = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Separators:
    """What keeps the words and the numbers of a text apart."""

    text: str
    pieces: Pieces

    def added(self, kept: Booleans) -> Booleans:
        """[pieces] Those kept, and the least that keeps their words and numbers apart.

        Between two words the first blank stays, if there is one that is a piece. Between two
        numbers a blank stays, else what is no point, comma or colon, the first of them; where no
        piece is enough, everything between.
        """
        kept = self._with_blanks(kept)
        numbers, before, after = self._numbers
        at = np.flatnonzero(kept[numbers])
        left, right = at[:-1], at[1:]
        until = np.concatenate([[0], np.cumsum(kept * (self.pieces.ends - self.pieces.starts))])
        between = until[numbers[right]] - until[numbers[left] + 1]
        near = (numbers[right] > numbers[left] + 1) & (after[left] + between + before[right] <= 1)
        for n, m in zip(numbers[left[near]].tolist(), numbers[right[near]].tolist(), strict=True):
            self._separate(kept, n, m)
        return kept

    def _with_blanks(self, kept: Booleans) -> Booleans:
        begins, ends, next_blank = self._words
        at = np.flatnonzero(kept)
        left, right = at[:-1], at[1:]
        blank = next_blank[left]
        more = kept.copy()
        more[blank[ends[left] & begins[right] & (blank < right)]] = True
        return more

    @cached_property
    def _words(self) -> tuple[Booleans, Booleans, Integers]:
        """[pieces] Does it begin, and end, inside a word; and which is the next blank after it?"""
        starts, ends = self.pieces.starts.tolist(), self.pieces.ends.tolist()
        bounds = list(zip(starts, ends, strict=True))
        begins = np.array([_in_word(self.text[start]) for start in starts], dtype=bool)
        lasts = np.array([_in_word(self.text[end - 1]) for end in ends], dtype=bool)
        blanks = np.array([self.text[start:end].isspace() for start, end in bounds], dtype=bool)
        blank = np.flatnonzero(blanks)
        following = np.searchsorted(blank, np.arange(len(starts)), side="right")
        return begins, lasts, np.append(blank, len(starts))[following]

    @cached_property
    def _numbers(self) -> tuple[Integers, Integers, Integers]:
        """Pieces with digits; characters of each before its first digit, and after its last."""
        starts, ends = self.pieces.starts, self.pieces.ends
        digits = [match.start() for match in _DIGIT.finditer(self.text)]
        numbers = np.unique(np.searchsorted(starts, digits, side="right") - 1).astype(np.int64)
        first = np.searchsorted(digits, starts[numbers])
        last = np.searchsorted(digits, ends[numbers]) - 1
        places = np.asarray(digits, dtype=np.int64)
        return numbers, places[first] - starts[numbers], ends[numbers] - places[last] - 1

    def _separate(self, kept: Booleans, left: int, right: int) -> None:
        """Keep what separates the pieces `left` and `right`, if what is kept does not."""
        inside = range(left + 1, right)
        kept_between = [self._text(n) for n in inside if kept[n]]
        after = _DIGIT.split(self._text(left))[-1]
        gap = "".join([after, *kept_between, _DIGIT.split(self._text(right), 1)[0]])
        if gap not in _JOINS:
            return
        free = [n for n in inside if not kept[n] and not _DIGIT.search(self._text(n))]
        blank = (n for n in free if self._text(n).isspace())
        other = (n for n in free if self._text(n) not in _JOINS)
        chosen = next(blank, None) or next(other, None)
        kept[inside if chosen is None else chosen] = True

    def _text(self, piece: int) -> str:
        return self.text[self.pieces.starts[piece] : self.pieces.ends[piece]]


def _in_word(character: str) -> bool:
    return character.isalnum() or category(character).startswith("M")
