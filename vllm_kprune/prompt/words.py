"""Read a text: its smallest parts, their kinds, and how surprising each is.

A frequent word can mostly be guessed from the words around it. A rare word, a name or a number
cannot (Shannon 1948; Li et al. 2023 prune prompts by it, with a language model's probabilities).

A text is cut chunk by chunk (what blanks divide, or a run of a script without spaces), see
`chunks`, and a `Lexicon` remembers the chunks that it has cut.

>>> found = read("the capital of Peru (2019)")
>>> [found.text[a:b] for a, b in zip(found.starts, found.ends)]
['the', ' ', 'capital', ' ', 'of', ' ', 'Peru', ' ', '(', '2019', ')']
>>> found.kinds, [round(nats, 1) for nats in found.nats.tolist()[:7:2]]
('f w f W (4)', [2.9, 9.2, 3.7, 11.8])
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache

import numpy as np

from vllm_kprune.arrays import Floats, Integers
from vllm_kprune.prompt.chunks import EAST, SOUTH, Chunk, cut_chunks
from vllm_kprune.prompt.word_lists import GUESSED, Languages, guess

__all__ = ["Lexicon", "Words", "read"]

# A chunk takes one blank before it along: most have one, and one look-up takes less time than two.
# At most 1,000 characters, because some searches in a chunk take the square of its length.
_CHUNK = re.compile(rf" ?[^\s{EAST}{SOUTH}]{{1,1000}}|[{EAST}]{{1,1000}}|[{SOUTH}]{{1,1000}}|\s+")
_MOST_CHUNKS, _LONGEST_REMEMBERED = 100_000, 48


@dataclass(frozen=True, eq=False)
class Words:
    """The parts of a text, in order; together they are the whole text.

    `starts` and `ends`: [parts] character offsets. `kinds`: a character for each part, see `kinds`.
    `nats`: [parts] self-information; NaN if there is no list for the script. `chunks`: those that
    the parts are of, in order.
    """

    text: str
    starts: Integers
    ends: Integers
    kinds: str
    nats: Floats
    chunks: Sequence[Chunk]


def read(text: str) -> Words:
    """Cut a text, with the word lists of its languages."""
    chunks = _lexicon(guess(text)).chunks(text)
    lengths = np.frombuffer(b"".join([c.lengths for c in chunks]), np.int64)
    nats = np.frombuffer(b"".join([c.nats for c in chunks]), np.float64)
    ends = np.cumsum(lengths)
    return Words(text, ends - lengths, ends, "".join([c.kinds for c in chunks]), nats, chunks)


@lru_cache(maxsize=64)
def _lexicon(languages: Languages) -> "Lexicon":
    return Lexicon(languages)


@cache
def _shared(han: str) -> dict[str, Chunk]:
    """Chunks without letters of a script whose language is guessed, by that of Chinese characters.

    What Latin letters in a Korean text are taken for changes from text to text, so without this
    its Korean words would be remembered many times, and met anew each time.
    """
    return {}


class Lexicon:
    """Cuts chunks by the word lists of some languages, and remembers those that it has cut."""

    def __init__(self, languages: Languages) -> None:
        self._languages = languages
        self._own: dict[str, Chunk] = {}
        self._shared = _shared(dict(languages)["Han"])

    def chunks(self, text: str) -> list[Chunk]:
        """The chunks of a text, in order."""
        texts = _CHUNK.findall(text)
        own = self._own.get
        found = [
            one or own(chunk)
            for one, chunk in zip(map(self._shared.get, texts), texts, strict=True)
        ]
        new = dict.fromkeys([chunk for chunk, one in zip(texts, found, strict=True) if not one])
        added = self._add(list(new)) if new else {}
        return [one or added[chunk] for one, chunk in zip(found, texts, strict=True)]

    def _add(self, chunks: Sequence[str]) -> dict[str, Chunk]:
        added = dict(zip(chunks, cut_chunks(chunks, self._languages), strict=True))
        for chunk, cut in added.items():
            if len(chunk) <= _LONGEST_REMEMBERED:
                known = self._own if GUESSED.search(chunk) else self._shared
                # Emptied at once, which is simpler than to forget the oldest.
                if len(known) >= _MOST_CHUNKS:
                    known.clear()
                known[chunk] = cut
        return added
