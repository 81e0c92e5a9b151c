"""Keep apart what did not touch: choose what stays between two kept pieces.

Where words between two pieces are dropped, one of the blanks between them stays, the one that says
most: an empty line, then a line end, then any. Without blanks a mark stays, and if there is none
either, as in Chinese, a blank is put in. Marks whose words are dropped go too: brackets and quotes
in pairs, dashes, commas, and the end of a sentence when nothing of the sentence is left.

>>> from vllm_kprune.prompt.pieces import cut_pieces
>>> pieces = cut_pieces("His tackles (118) for the team", [])
>>> wanted = pieces.are("wN4")
>>> joints = Joints(pieces)
>>> joints.text(joints.joined(wanted))
'tackles 118 team'
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import regex

from vllm_kprune.arrays import Booleans, Integers
from vllm_kprune.prompt.kinds import GAPS, MARKS
from vllm_kprune.prompt.pieces import TextPieces

__all__ = ["Joints"]

# The number of pieces is below this, so a rank times it, less a place, orders by rank, then place.
_MANY = 1 << 40
# Of brackets and quotes one alone would say something else, so a blank is put in instead.
_RANKS = ("-", ",", ".", " ", "\n", "|")
_BLANK = 3  # the rank from which on a joint is a blank
_PAIRS = regex.compile(r"\([^()|]{0,400}\)|'[^'\n|]{0,400}'")


@dataclass(frozen=True, eq=False)
class Joints:
    """What stands between the pieces of one text."""

    pieces: TextPieces

    def joined(self, kept: Booleans, forced: Booleans | None = None) -> Booleans:
        """[pieces] `kept`, without marks that have lost their words, and with what joins the rest.

        Blanks in `kept` are ignored unless they are `forced`.
        """
        kept = kept & ~self._gap
        if forced is not None:
            kept |= forced
        kept = self._marks_with_words(kept, forced)
        # Blanks at the edges stay: other text may follow there. But a single word may be all that
        # there is room for.
        if np.count_nonzero(kept) > 1 or not self._words:
            kept[:1] |= self._gap[:1]
            kept[-1:] |= self._gap[-1:]
        at = np.flatnonzero(kept)
        left, right = at[:-1], at[1:]
        if not len(left):
            return kept
        # What stays between two kept pieces that are not neighbours.
        ranks = np.where(kept, -1, self._ranks)
        best = np.maximum.reduceat(ranks[: at[-1] + 1], left + 1)
        apart = right > left + 1
        only = (right == left + 2) & self._gap[left + 1]
        need = only | (apart & self._needed(left, right))
        # After a comma a blank stays too, but none is put in.
        blank = apart & self._after_mark[left] & ~self._mark[right] & (best >= _BLANK * _MANY)
        kept = kept.copy()
        kept[len(kept) - 1 - best[(need & (best >= 0)) | blank] % _MANY] = True
        # A blank that is put in costs a token, so it may not take the place of a single one.
        none = np.flatnonzero(need & (best < 0))
        single = self._until[right[none]] - self._until[left[none] + 1] <= 1
        for n in none[single].tolist():
            kept[left[n] : right[n]] = True
        return kept

    def size(self, kept: Booleans) -> int:
        """About how many tokens are left: those of the pieces, and blanks that are put in."""
        at = np.flatnonzero(kept)
        left, right = at[:-1], at[1:]
        put = int(np.count_nonzero((right > left + 1) & self._needed(left, right)))
        return int(self.pieces.sizes[kept].sum()) + put

    def text(self, kept: Booleans) -> str:
        """What is left of the text when only the pieces in `kept` stay."""
        text, pieces = self.pieces.text, self.pieces
        # Runs of neighbours are cut out at once: fewer slices, and most pieces stay.
        edges = np.flatnonzero(np.diff(kept, prepend=False, append=False))
        if not len(edges):
            return ""
        first, last = edges[::2], edges[1::2] - 1
        runs = zip(pieces.starts[first].tolist(), pieces.ends[last].tolist(), strict=True)
        blank = np.append(False, self._needed(last[:-1], first[1:]))
        found = zip(runs, blank.tolist(), strict=True)
        return "".join([f" {text[a:b]}" if put else text[a:b] for (a, b), put in found])

    def _needed(self, left: Integers, right: Integers) -> Booleans:
        mark, number = self._mark, self._number
        words = ~mark[left] & ~mark[right]  # blanks are among the marks here
        # "- 5" may not become -5, nor "3" and ",5" become 3,5.
        minus = mark[left] & number[right]
        comma = number[left] & mark[right] & self._touches[right]
        gap = self._gap
        return (words | minus | comma) & ~gap[left] & ~gap[right]

    @cached_property
    def _gap(self) -> Booleans:
        return self.pieces.are(GAPS)

    @cached_property
    def _until(self) -> Integers:
        """[pieces + 1] what all pieces before one would cost."""
        costs = self.pieces.sizes + self.pieces.are("()'")  # a bracket alone is worth less
        return np.concatenate([[0], np.cumsum(costs)])

    @cached_property
    def _words(self) -> bool:
        return not bool(self._gap.all())

    @cached_property
    def _mark(self) -> Booleans:
        return self.pieces.are(MARKS + "-" + GAPS)

    @cached_property
    def _after_mark(self) -> Booleans:
        return self.pieces.are(".,)'-")

    @cached_property
    def _number(self) -> Booleans:
        return self.pieces.are("N4kKDdZUos")

    @cached_property
    def _touches(self) -> Booleans:
        """[pieces] True if the next piece is a word without a blank before it."""
        pieces = self.pieces
        # Wide marks, as in Chinese, are in no number.
        narrow = [pieces.text[n] in ".,:;'-" for n in pieces.starts[self._mark].tolist()]
        found = self._mark.copy()
        found[self._mark] = narrow
        before_word = np.append(~(self._gap | self._mark)[1:], False)
        return np.asarray(found & before_word)

    @cached_property
    def _ranks(self) -> Integers:
        """[pieces] which is the best joint: by rank, then the first; -1 for what is none."""
        ranks = np.full(len(self.pieces.starts), -1, dtype=np.int64)
        for rank, kinds in enumerate(_RANKS):
            ranks[self.pieces.are(kinds)] = rank
        place = np.arange(len(ranks))[::-1]
        return np.where(ranks >= 0, ranks * _MANY + place, -1)

    def _marks_with_words(self, kept: Booleans, forced: Booleans | None) -> Booleans:
        """[pieces] `kept` without the marks that have lost their words."""
        before, after = self._neighbours
        whole = np.append(kept, False)
        opening, closing, both, ends = self._marks
        lost = np.concatenate(
            [
                opening[~whole[after[opening]]],
                closing[~whole[before[closing]]],
                both[~(whole[before[both]] & whole[after[both]])],
            ]
        )
        # Words in each sentence, of those that have an end.
        words = np.bincount(self._sentence[kept & ~self._mark], minlength=self._sentences)
        kept = kept.copy()
        kept[lost] = False
        kept[ends[words[self._sentence[ends]] == 0]] = False
        first, last = self._pairs
        pair = kept[first] & kept[last]
        kept[first], kept[last] = pair, pair
        return kept if forced is None else kept | forced

    @cached_property
    def _neighbours(self) -> tuple[Integers, Integers]:
        """[pieces] the piece that is no blank before each, and after; beyond the ends -1."""
        count = len(self.pieces.starts)
        place = np.where(self._gap, -1, np.arange(count))
        before = np.concatenate([[-1], np.maximum.accumulate(place)[:-1]])
        place = np.where(self._gap, count, np.arange(count))[::-1]
        after = np.concatenate([[count], np.minimum.accumulate(place)[:-1]])[::-1]
        return before[:count], after[-count:] if count else after[:0]

    @cached_property
    def _pairs(self) -> tuple[Integers, Integers]:
        """Places of opening marks and of those that close them."""
        found = _PAIRS.finditer(self.pieces.kinds.tobytes().decode())
        pairs = np.array([(m.start(), m.end() - 1) for m in found], dtype=np.int64).reshape(-1, 2)
        return pairs[:, 0], pairs[:, 1]

    @cached_property
    def _marks(self) -> Sequence[Integers]:
        """Places of marks that go with the word after, before, or both, and with the sentence."""
        return [np.flatnonzero(self.pieces.are(kinds)) for kinds in ("(", "),", "-'", ".")]

    @cached_property
    def _sentence(self) -> Integers:
        """[pieces] the number of the sentence that each is in."""
        return self.pieces.sentences

    @cached_property
    def _sentences(self) -> int:
        return int(self._sentence[-1]) + 1 if len(self._sentence) else 0
