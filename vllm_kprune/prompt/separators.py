"""Keep words and numbers apart when the text between them is dropped.

Pruning `3, 5 and 8` must leave neither `35` nor `3,58`, and `Row 1` must not become `Row1`. So of
everything between two kept numbers, at least one separator stays. Between two kept words, a blank
stays if it is a piece by itself. A number is a run of digits (Unicode's Nd), with single marks
inside.

>>> from vllm_kprune.prompt.pieces import cut_pieces
>>> text = "Row 1—2 of 9"
>>> pieces = cut_pieces(text, [(0, 3), (3, 4), (4, 5), (5, 6), (6, 7), (7, 10), (10, 12)])
>>> chosen = np.array([True, False, True, False, True, False, True])
>>> pieces.join(text, chosen)
'Row12 9'
>>> pieces.join(text, Separators(text, pieces).added(chosen))
'Row 1—2 9'

The blank before 9 is part of its token, so "of" can go.
"""

from dataclasses import dataclass
from functools import cached_property
from unicodedata import category

import numpy as np
import regex

from vllm_kprune.arrays import Booleans, Integers
from vllm_kprune.prompt.pieces import TextPieces

__all__ = ["Separators"]

_DIGIT = regex.compile(r"\p{Nd}")
# Between digits, each of these makes one number.
_JOINS = frozenset(("", ".", ",", ":"))


@dataclass(frozen=True, eq=False)
class Separators:
    """The pieces of a text that can keep its words and numbers apart."""

    text: str
    pieces: TextPieces

    def added(self, kept: Booleans) -> Booleans:
        """[pieces] `kept`, and the least that keeps its words and numbers apart.

        Between two words, the first blank that is a piece stays, if there is one. Between two
        numbers a blank stays, or else the first piece that is not a point, comma or colon. If no
        single piece is enough, everything between stays.
        """
        kept = self._with_blanks(kept)
        numbers, before, after = self._numbers
        at = np.flatnonzero(kept[numbers])
        left, right = at[:-1], at[1:]
        # until[n]: kept characters before piece n. So `between` counts those between two numbers.
        until = np.concatenate([[0], np.cumsum(kept * (self.pieces.ends - self.pieces.starts))])
        between = until[numbers[right]] - until[numbers[left] + 1]
        # Nothing was dropped between neighbours, so they stand as they did.
        # Two numbers can only join if at most one character is left between their digits.
        near = (numbers[right] > numbers[left] + 1) & (after[left] + between + before[right] <= 1)
        # Pairs do not overlap: a separator for one changes nothing that was found for another.
        for n, m in zip(numbers[left[near]].tolist(), numbers[right[near]].tolist(), strict=True):
            self._separate(kept, n, m)
        return kept

    def _with_blanks(self, kept: Booleans) -> Booleans:
        begins, ends, next_blank = self._words
        at = np.flatnonzero(kept)
        left, right = at[:-1], at[1:]
        # Where no blank follows, `blank` is the number of pieces, which is never below `right`.
        blank = next_blank[left]
        more = kept.copy()
        more[blank[ends[left] & begins[right] & (blank < right)]] = True
        return more

    @cached_property
    def _words(self) -> tuple[Booleans, Booleans, Integers]:
        """[pieces] True if it begins in a word; true if it ends in one; the next blank after it."""
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
        """TextPieces with digits; characters of each before its first digit, and after its last."""
        starts, ends = self.pieces.starts, self.pieces.ends
        digits = [match.start() for match in _DIGIT.finditer(self.text)]
        # A digit belongs to the last piece that begins at or before it.
        numbers = np.unique(np.searchsorted(starts, digits, side="right") - 1).astype(np.int64)
        first = np.searchsorted(digits, starts[numbers])
        last = np.searchsorted(digits, ends[numbers]) - 1
        places = np.asarray(digits, dtype=np.int64)
        return numbers, places[first] - starts[numbers], ends[numbers] - places[last] - 1

    def _separate(self, kept: Booleans, left: int, right: int) -> None:
        """Keep a separator between the pieces `left` and `right`, unless one is kept already."""
        inside = range(left + 1, right)
        kept_between = [self._text(n) for n in inside if kept[n]]
        # What stands between the digits: rest of the left piece, kept pieces, start of the right.
        after = _DIGIT.split(self._text(left))[-1]
        gap = "".join([after, *kept_between, _DIGIT.split(self._text(right), 1)[0]])
        if gap not in _JOINS:
            return
        # A number that was dropped must not come back as a separator.
        free = [n for n in inside if not kept[n] and not _DIGIT.search(self._text(n))]
        blank = (n for n in free if self._text(n).isspace())
        other = (n for n in free if self._text(n) not in _JOINS)
        # `or` is safe: the first piece in `free` is at least left + 1, never 0.
        chosen = next(blank, None) or next(other, None)
        kept[inside if chosen is None else chosen] = True

    def _text(self, piece: int) -> str:
        return self.text[self.pieces.starts[piece] : self.pieces.ends[piece]]


def _in_word(character: str) -> bool:
    return character.isalnum() or category(character).startswith("M")
