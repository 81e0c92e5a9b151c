"""Encode texts part by part, and remember the parts: most words of a text were read before.

Encoding takes as long as all the rest of pruning, and a text is encoded twice: before, and to count
what is left of it. Where a tokenizer has seams (see `tokenizer.seams`), only parts that are new are
encoded, all in one call, and the tokens are the same. Texts of a tokenizer without seams, and texts
with few blanks, as in Chinese, are encoded whole.

>>> from vllm_kprune.prompt.word_tokens import word_tokenizer
>>> PartEncoder(word_tokenizer()).count("the cat sat")
3
"""

import re
from collections.abc import Sequence
from functools import cached_property
from itertools import chain, repeat

import numpy as np
from tokenizers import Tokenizer

from vllm_kprune.arrays import Integers
from vllm_kprune.prompt.tokens import Tokens, encode
from vllm_kprune.tokenizer.seams import parts_pattern

__all__ = ["PartEncoder"]

_MOST_PARTS, _LONGEST = 100_000, 40
# On average, in characters. Few parts that are longer are met again.
_LONG_PARTS = 24
_ROW = np.dtype((np.int32, 3))


class PartEncoder:
    """The tokens of texts, as the tokenizer gives them. Several threads may use one object."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        # Rows of (id, begin, end), one for each token, as bytes: those can be joined at once.
        self._known: dict[str, bytes] = {}

    @cached_property
    def _pattern(self) -> "re.Pattern[str] | None":
        # Found on first use, because all of the vocabulary is looked at.
        return parts_pattern(self._tokenizer)

    def count(self, text: str) -> int:
        """The number of tokens of a text. Raises `KPruneError` as `encode` does."""
        parts = self._parts(text)
        if parts is None:
            return len(encode(self._tokenizer, text))
        return sum(map(len, self._encoded(parts))) // _ROW.itemsize

    def tokens(self, text: str) -> Tokens:
        """The tokens of a text. Raises `KPruneError` as `encode` does."""
        parts = self._parts(text)
        if parts is None:
            return _tokens(text, _rows(self._tokenizer, text))
        found = self._encoded(parts)
        rows = np.frombuffer(b"".join(found), _ROW).astype(np.int64)
        lengths = np.fromiter(map(len, parts), np.int64, len(parts))
        counts = np.fromiter(map(len, found), np.int64, len(found)) // _ROW.itemsize
        rows[:, 1:] += np.repeat(np.cumsum(lengths) - lengths, counts)[:, None]
        return _tokens(text, rows)

    def _parts(self, text: str) -> list[str] | None:
        """The parts of a text; None if it is better encoded whole."""
        if self._pattern is None or len(text) > _LONG_PARTS * (1 + text.count(" ")):
            return None
        parts = self._pattern.findall(text)
        return parts if parts[-1] else parts[:-1]

    def _encoded(self, parts: Sequence[str]) -> list[bytes]:
        """The rows of each part of one text."""
        known = self._known
        found = list(map(known.get, parts, repeat(b"")))
        new = dict.fromkeys([part for part, rows in zip(parts, found, strict=True) if not rows])
        if not new:
            return found
        added = self._encode(list(new))
        # Emptied at once, which is simpler than to forget the oldest.
        if len(known) + len(added) > _MOST_PARTS:
            known.clear()
        known.update({part: rows for part, rows in added.items() if len(part) <= _LONGEST})
        return [rows or added[part] for part, rows in zip(parts, found, strict=True)]

    def _encode(self, parts: Sequence[str]) -> dict[str, bytes]:
        """Encode parts of one text, in its order, in one call: as one text, cut where they meet.

        These are seams too, because parts begin with a blank; only the first of a text may not, and
        it is the first here.
        """
        rows = _rows(self._tokenizer, "".join(parts))
        ends = np.cumsum(np.fromiter(map(len, parts), np.int64, len(parts)))
        edges = np.append(0, np.searchsorted(rows[:, 1], ends))
        starts = np.append(0, ends[:-1])
        rows[:, 1:] -= np.repeat(starts, np.diff(edges))[:, None]
        data, size = rows.astype(np.int32).tobytes(), _ROW.itemsize
        cut = (edges * size).tolist()
        return {part: data[a:b] for part, a, b in zip(parts, cut[:-1], cut[1:], strict=True)}


def _rows(tokenizer: Tokenizer, text: str) -> Integers:
    """[tokens, 3] id, begin and end of each."""
    encoding = encode(tokenizer, text)
    rows = np.empty((len(encoding), 3), np.int64)
    rows[:, 0] = encoding.ids
    flat = np.fromiter(chain.from_iterable(encoding.offsets), np.int64, 2 * len(rows))
    rows[:, 1:] = flat.reshape(-1, 2)
    return rows


def _tokens(text: str, rows: Integers) -> Tokens:
    return Tokens(text, rows[:, 0], rows[:, 1:])
