"""Cut a text into the pieces that are kept or dropped as a whole.

A piece is a phrase (see `phrases`): most often a word, with the unit "token" also a part of one.
Blanks between words are pieces of their own, which `joints` keeps or drops. No piece splits a
character as people see it (an extended grapheme cluster, UAX #29), so no emoji sequence is halved
and no vowel of decomposed Korean is left alone.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Literal

import numpy as np
import numpy.typing as npt
import regex

from vllm_kprune.arrays import Booleans, Floats, Integers
from vllm_kprune.prompt.kinds import GAPS
from vllm_kprune.prompt.phrases import linked
from vllm_kprune.prompt.words import Words, read

__all__ = ["TextPieces", "Unit", "cut_pieces"]

Unit = Literal["token", "word"]
_CHARACTER = regex.compile(r"\X")
# A cluster of several code points has one of these or ends a line. Most texts have none, and then
# the slow search for clusters is not needed.
_IN_CLUSTER = regex.compile(
    r"[\p{GCB=Extend}\p{GCB=ZWJ}\p{GCB=SpacingMark}\p{GCB=Prepend}\p{GCB=L}\p{GCB=V}\p{GCB=T}"
    r"\p{GCB=Regional_Indicator}\r]"
)
# Nothing but these: no cluster is longer than a character. Looked for first, by the faster `re`.
_SINGLE = re.compile(
    "[\x00-\x0c\x0e-\u02ff\u0370-\u0482\u1e00-\u1fff\u2010-\u2027\u2030-\u205f\u2070-\u20cf"
    "\u2100-\u2bff\u3000-\u3029\u3030-\u3098\u309b-\ua66e\uac00-\ud7a3\uf900-\ufaff\uff00-\uff9d]*"
)
# Trap: to pair the flags of a run, the search for clusters looks back over the whole run at each
# flag, so a run of n flags takes n * n steps. Long runs are therefore paired by `_allowed`, and the
# search reads them as `_PLAIN`.
_MANY_FLAGS = regex.compile(r"\p{Regional_Indicator}{64,}")
_PLAIN = "一"
_SENTENCE_END = re.compile(r"(?P<line>[\n|])|\.+[.)']*")
_ENDS_ALONE = "。！？｡।"
# Kinds that a token may divide; numbers, addresses and phrases stay whole.
_DIVISIBLE = "wWfHcCAuhqpBxyt&njmlvVRXYiE!"
_NUMBERS = "N4kKDdZU"


@dataclass(frozen=True, eq=False)
class TextPieces:
    """The pieces of a text, in order. Together they are the whole text.

    `starts` and `ends`: [pieces] character offsets. `kinds`: [pieces] ASCII codes of `kinds`; w for
    a phrase, N for one with a number. `nats`: [pieces] the self-information of the rarest word,
    NaN if it is not known. `continues`: [pieces] true for a part of the word before it. `of_token`:
    [tokens] the piece of each token. A token that begins with a blank is of the piece after it.
    """

    text: str
    starts: Integers
    ends: Integers
    kinds: npt.NDArray[np.uint8]
    nats: Floats
    continues: Booleans
    of_token: Integers
    words: Words
    parts: Integers
    """[pieces] the first part of `words` in each."""

    @cached_property
    def sizes(self) -> Integers:
        """[pieces] number of tokens in each."""
        return np.bincount(self.of_token, minlength=len(self.starts))

    def means(self, values: npt.NDArray[np.float32]) -> Floats:
        """[pieces] mean of [tokens] `values`; 0 for a piece without tokens."""
        sums = np.bincount(self.of_token, weights=values, minlength=len(self.starts))
        return np.asarray(sums / np.maximum(self.sizes, 1))

    def are(self, kinds: str) -> Booleans:
        """[pieces] True for those of some kinds."""
        return _table(kinds)[self.kinds]

    @cached_property
    def sentences(self) -> Integers:
        """[pieces] the number of the sentence that each is in; a line end ends a sentence too."""
        kinds = self.kinds.tobytes().decode()
        ends = np.zeros(len(kinds) + 1, dtype=np.int64)
        for match in _SENTENCE_END.finditer(kinds):
            end = match.end()
            # 。 ends a sentence by itself; "." only before a blank.
            if (
                match["line"]
                or end == len(kinds)
                or kinds[end] in GAPS
                or (self.text[self.starts[match.start()]] in _ENDS_ALONE)
            ):
                ends[end] = 1
        return np.cumsum(ends)[:-1]


def cut_pieces(
    text: str, offsets: Integers | Sequence[tuple[int, int]], unit: Unit = "word"
) -> TextPieces:
    """Cut `text` into phrases; with the unit "token", words also before each token in them.

    `offsets`: [tokens] (begin, end) of each token in characters. Tokens that share a character, as
    byte tokens do, are in one piece.

    >>> pieces = cut_pieces("in 2024 by 5 km", [(0, 2), (2, 5), (5, 7), (7, 10), (10, 15)])
    >>> [pieces.text[a:b] for a, b in zip(pieces.starts, pieces.ends)], pieces.of_token.tolist()
    (['in', ' ', '2024', ' ', 'by 5 km'], [0, 2, 2, 4, 4])
    """
    words = read(text)
    spans = np.asarray(offsets, np.int64).reshape(-1, 2)
    kinds = np.frombuffer(words.kinds.encode(), dtype=np.uint8)
    parts = np.flatnonzero(_begins(words))
    starts, continues = words.starts[parts], np.zeros(len(parts), dtype=bool)
    kinds, nats = (
        _merged(kinds, parts),
        np.fmax.reduceat(words.nats, parts) if len(parts) else words.nats,
    )
    if unit == "token" and len(parts):
        inside = _inside(text, spans, starts, kinds)
        owner = np.searchsorted(starts, inside, side="right") - 1
        order = np.argsort(np.concatenate([starts, inside]), kind="stable")
        owners = np.concatenate([np.arange(len(parts)), owner])[order]
        starts = np.concatenate([starts, inside])[order]
        continues = np.concatenate([continues, np.ones(len(inside), dtype=bool)])[order]
        kinds, nats, parts = kinds[owners], nats[owners], parts[owners]
    ends = np.append(starts[1:], len(text)) if len(starts) else starts
    of_token = _owners(spans, starts, ends, kinds)
    return TextPieces(text, starts, ends, kinds, nats, continues, of_token, words, parts)


@cache
def _table(kinds: str) -> Booleans:
    """[256] True for the ASCII codes of some kinds."""
    table = np.zeros(256, dtype=bool)
    table[[ord(kind) for kind in kinds]] = True
    return table


def _begins(words: Words) -> Booleans:
    """[parts] True for the first part of each phrase."""
    flags = bytearray(b"\1") * len(words.starts)
    for span in linked(words.kinds):
        for part in span:
            flags[part] = 0
    begins = np.frombuffer(flags, dtype=bool)
    allowed = _allowed(words.text)
    if allowed is not None:
        begins &= allowed[words.starts]
    return begins


def _merged(kinds: npt.NDArray[np.uint8], parts: Integers) -> npt.NDArray[np.uint8]:
    """[pieces] the kind of each: its own, or for a phrase w, N if a number is in it."""
    if len(parts) == len(kinds):
        return kinds
    number = _table(_NUMBERS)[kinds]
    merged = kinds[parts].copy()
    many = np.diff(parts, append=len(kinds)) > 1
    merged[many] = ord("w")
    merged[many & np.logical_or.reduceat(number, parts)] = ord("N")
    return merged


def _inside(text: str, spans: Integers, starts: Integers, kinds: npt.NDArray[np.uint8]) -> Integers:
    """Where tokens begin inside a word that they may divide."""
    begins = spans[:, 0]
    # The furthest end of all tokens before each: a token that begins earlier overlaps one of them.
    # Two byte tokens of one character both span (3, 4): at the second, 3 < 4, so there is no cut.
    reached = np.concatenate([[0], np.maximum.accumulate(spans[:, 1])[:-1]])[: len(begins)]
    cuts = np.unique(begins[(begins >= reached) & (begins > 0) & (begins < len(text))])
    allowed = _allowed(text)
    if allowed is not None:
        cuts = cuts[allowed[cuts]]
    owner = np.searchsorted(starts, cuts, side="right") - 1
    divisible = _table(_DIVISIBLE)[kinds[owner]]
    return np.asarray(cuts[divisible & (cuts > starts[owner])])


def _owners(
    spans: Integers, starts: Integers, ends: Integers, kinds: npt.NDArray[np.uint8]
) -> Integers:
    """[tokens] the piece of each: that of its first character that is no blank."""
    if not len(starts):
        return np.zeros(len(spans), dtype=np.int64)
    at = np.maximum(np.searchsorted(starts, spans[:, 0], side="right") - 1, 0)
    blank = _table(GAPS)[kinds[at]]
    return np.asarray(at + (blank & (spans[:, 1] > ends[at])))


def _allowed(text: str) -> Booleans | None:
    """[characters] True where the text may be cut before the character; None for everywhere."""
    if _SINGLE.fullmatch(text):
        return None
    scanned = _MANY_FLAGS.sub(lambda run: _PLAIN * len(run[0]), text)
    if not _IN_CLUSTER.search(scanned):
        return None
    allowed = np.zeros(len(text), dtype=bool)
    allowed[[match.start() for match in _CHARACTER.finditer(scanned)]] = True
    # Flags are pairs of code points, counted from the beginning of the run: no cut inside a pair.
    for run in _MANY_FLAGS.finditer(text):
        allowed[run.start() + 1 : run.end() : 2] = False
    return allowed
