"""Cut a text into the pieces that are kept or dropped as a whole.

A piece is one or several tokens. It never splits a character as people see it (an extended grapheme
cluster, UAX #29), so no emoji sequence is halved and no vowel of decomposed Korean is left alone.
It never splits a number either, because 204 is not nearly 2024. With the unit "word" it also never
splits a word as UAX #29 defines it, where each Han character is a word.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import regex

__all__ = ["TextPieces", "Unit", "cut_pieces"]

Unit = Literal["token", "word"]
_CHARACTER = regex.compile(r"\X")
_WORD_BOUNDARY = regex.compile(r"(?w)\b")
# A single digit is one character and cannot be cut, so it is not looked for.
_NUMBER = regex.compile(r"\p{Nd}+(?:[.,:]\p{Nd}+)++|\p{Nd}{2,}")
# A cluster of several code points has one of these or ends a line. Most texts have none, and then
# the slow search for clusters is not needed.
_IN_CLUSTER = regex.compile(
    r"[\p{GCB=Extend}\p{GCB=ZWJ}\p{GCB=SpacingMark}\p{GCB=Prepend}\p{GCB=L}\p{GCB=V}\p{GCB=T}"
    r"\p{GCB=Regional_Indicator}\r]"
)
# Trap: to pair the flags of a run, the search for clusters looks back over the whole run at each
# flag, so a run of n flags takes n * n steps. Long runs are therefore paired by `_allowed`, and the
# searches read them as `_PLAIN`, a character that is a word by itself.
_MANY_FLAGS = regex.compile(r"\p{Regional_Indicator}{64,}")
_PLAIN = "一"


@dataclass(frozen=True, eq=False)
class TextPieces:
    """The pieces of a text, in order. Together they are the whole text.

    `starts` and `ends`: [pieces] character offsets. `of_token`: [tokens] the piece of each token.
    """

    starts: npt.NDArray[np.int64]
    ends: npt.NDArray[np.int64]
    of_token: npt.NDArray[np.int64]

    @property
    def sizes(self) -> npt.NDArray[np.int64]:
        """[pieces] number of tokens in each."""
        return np.bincount(self.of_token, minlength=len(self.starts))

    def means(self, values: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
        """[pieces] mean of [tokens] `values`; 0 for a piece without tokens."""
        sums = np.bincount(self.of_token, weights=values, minlength=len(self.starts))
        return np.asarray(sums / np.maximum(self.sizes, 1))

    def join(self, text: str, kept: npt.NDArray[np.bool_]) -> str:
        """What is left of `text` when only the pieces in `kept` stay."""
        bounds = zip(self.starts[kept].tolist(), self.ends[kept].tolist(), strict=True)
        return "".join(text[start:end] for start, end in bounds)


def cut_pieces(text: str, offsets: Sequence[tuple[int, int]], unit: Unit = "token") -> TextPieces:
    """Cut `text` before each token, except inside a character, number, word or other token.

    `offsets`: [tokens] (begin, end) of each token in characters. Tokens that share a character, as
    byte tokens do, are in one piece. Text that no token covers belongs to the piece before it.

    >>> pieces = cut_pieces("in 2024", [(0, 2), (2, 5), (5, 7)])  # "in", " 20", "24"
    >>> list(zip(pieces.starts.tolist(), pieces.ends.tolist())), pieces.of_token.tolist()
    ([(0, 2), (2, 7)], [0, 1, 1])
    """
    spans = np.asarray(offsets, dtype=np.int64).reshape(-1, 2)
    begins = spans[:, 0]
    # The furthest end of all tokens before each: a token that begins earlier overlaps one of them.
    # Two byte tokens of one character both span (3, 4): at the second, 3 < 4, so there is no cut.
    reached = np.concatenate([[0], np.maximum.accumulate(spans[:, 1])[:-1]])[: len(begins)]
    cuts = np.unique(begins[(begins >= reached) & (begins > 0) & (begins < len(text))])
    cuts = cuts[_allowed(text, unit)[cuts]] if len(cuts) else cuts
    starts = np.concatenate([[0], cuts]) if text else np.zeros(0, dtype=np.int64)
    ends = np.concatenate([cuts, [len(text)]]) if text else np.zeros(0, dtype=np.int64)
    of_token = np.maximum(np.searchsorted(starts, begins, side="right") - 1, 0)
    return TextPieces(starts.astype(np.int64), ends.astype(np.int64), of_token)


def _allowed(text: str, unit: Unit) -> npt.NDArray[np.bool_]:
    """[characters] True where the text may be cut before the character."""
    scanned = _MANY_FLAGS.sub(lambda run: _PLAIN * len(run[0]), text)
    if _IN_CLUSTER.search(scanned):
        allowed = np.zeros(len(text), dtype=bool)
        allowed[[match.start() for match in _CHARACTER.finditer(scanned)]] = True
    else:
        allowed = np.ones(len(text), dtype=bool)
    if unit == "word":
        allowed &= _between_words(scanned)
    for number in _NUMBER.finditer(text):
        allowed[number.start() + 1 : number.end()] = False
    # Flags are pairs of code points, counted from the beginning of the run: no cut inside a pair.
    for run in _MANY_FLAGS.finditer(text):
        allowed[run.start() + 1 : run.end() : 2] = False
    return allowed


def _between_words(text: str) -> npt.NDArray[np.bool_]:
    """[characters] True where a word begins, including the spaces before it but no line end."""
    # + 1: the end of the text is a boundary too.
    between = np.zeros(len(text) + 1, dtype=bool)
    between[[match.start() for match in _WORD_BOUNDARY.finditer(text)]] = True
    between = between[:-1]
    blank = np.fromiter((c.isspace() and c not in "\r\n" for c in text), bool, len(text))
    # No cut after a blank, so the blank of " of" is in one piece with its word.
    between[1:] &= ~blank[:-1]
    return between
