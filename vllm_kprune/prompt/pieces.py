"""Cut a text into the pieces that are kept or dropped as a whole.

A piece is one or several tokens. It never splits a character as people see it (an extended grapheme
cluster, UAX #29): no half of an emoji sequence, no lone vowel of decomposed Korean. Nor a number,
because 204 is not nearly 2024. With the unit "word" it splits no word either, where UAX #29 knows
words: Han characters are words of their own.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import regex

__all__ = ["Pieces", "Unit", "cut_pieces"]

Unit = Literal["token", "word"]
_CHARACTER = regex.compile(r"\X")
_WORD_BOUNDARY = regex.compile(r"(?w)\b")
_NUMBER = regex.compile(r"\p{Nd}+(?:[.,:]\p{Nd}+)++|\p{Nd}{2,}")
# Clusters of several code points need one of these, or a line end; most texts have none of them.
_IN_CLUSTER = regex.compile(
    r"[\p{GCB=Extend}\p{GCB=ZWJ}\p{GCB=SpacingMark}\p{GCB=Prepend}\p{GCB=L}\p{GCB=V}\p{GCB=T}"
    r"\p{GCB=Regional_Indicator}\r]"
)
# To find the pairs in a run of flags, a search looks back over all of it: long runs are paired
# here, and read as characters that are words by themselves.
_MANY_FLAGS = regex.compile(r"\p{Regional_Indicator}{64,}")
_PLAIN = "一"


@dataclass(frozen=True, eq=False)
class Pieces:
    """The pieces of a text, in order; together they are all of it.

    `starts` and `ends`: [pieces] character offsets. `of_token`: [tokens] the piece of each token.
    """

    starts: npt.NDArray[np.int64]
    ends: npt.NDArray[np.int64]
    of_token: npt.NDArray[np.int64]

    @property
    def sizes(self) -> npt.NDArray[np.int64]:
        """[pieces] tokens of each."""
        return np.bincount(self.of_token, minlength=len(self.starts))


def cut_pieces(text: str, offsets: Sequence[tuple[int, int]], unit: Unit = "token") -> Pieces:
    """Cut `text` where a token begins, and no character, number, word or token goes across.

    `offsets`: [tokens] (begin, end) of each token in characters. Tokens that share a character, as
    byte tokens do, come to lie in one piece, and so does text that no token covers.
    """
    spans = np.asarray(offsets, dtype=np.int64).reshape(-1, 2)
    begins = spans[:, 0]
    reached = np.concatenate([[0], np.maximum.accumulate(spans[:, 1])[:-1]])[: len(begins)]
    cuts = np.unique(begins[(begins >= reached) & (begins > 0) & (begins < len(text))])
    cuts = cuts[_allowed(text, unit)[cuts]] if len(cuts) else cuts
    starts = np.concatenate([[0], cuts]) if text else np.zeros(0, dtype=np.int64)
    ends = np.concatenate([cuts, [len(text)]]) if text else np.zeros(0, dtype=np.int64)
    of_token = np.maximum(np.searchsorted(starts, begins, side="right") - 1, 0)
    return Pieces(starts.astype(np.int64), ends.astype(np.int64), of_token)


def _allowed(text: str, unit: Unit) -> npt.NDArray[np.bool_]:
    """[characters] May the text be cut before each?"""
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
    for run in _MANY_FLAGS.finditer(text):
        allowed[run.start() + 1 : run.end() : 2] = False
    return allowed


def _between_words(text: str) -> npt.NDArray[np.bool_]:
    """[characters] Does a word begin here? Spaces before it belong to it, a line end does not."""
    between = np.zeros(len(text) + 1, dtype=bool)
    between[[match.start() for match in _WORD_BOUNDARY.finditer(text)]] = True
    between = between[:-1]
    blank = np.fromiter((c.isspace() and c not in "\r\n" for c in text), bool, len(text))
    between[1:] &= ~blank[:-1]
    return between
