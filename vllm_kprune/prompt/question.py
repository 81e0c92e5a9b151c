"""Sentences that share words with the question: how much of what is asked is in each.

What is asked for usually stands near the question's own words. A sentence has the share of the
question's information that is in its words, and at least 0.3 of that of its neighbours. This
compares words, not meanings. The scorer `question` adds it to `rarity`.
"""

from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from functools import lru_cache

import numpy as np

from vllm_kprune.arrays import Booleans, Floats
from vllm_kprune.prompt.chunks import has_stem
from vllm_kprune.prompt.cut_text import CutText
from vllm_kprune.prompt.pieces import TextPieces
from vllm_kprune.prompt.rarity import piece_nats
from vllm_kprune.prompt.tokens import IsCancelled
from vllm_kprune.prompt.words import Words, read

__all__ = ["Question", "asked_pieces", "sentence_relevance"]

_GAIN_NATS = 10.0  # for a sentence with all of the question's words
_BESIDE = 0.3  # the share of it for the sentences before and after
_COMMON_NATS = 6.0  # words below this say nothing about the subject


class Question:
    """Scores in nats: the information of words, and up to 10 more in sentences asked about.

    Without a question it is `rarity`.
    """

    name = "question"
    uses_query = True

    def scores(
        self, passage: CutText, *, query: str | None = None, cancelled: IsCancelled | None = None
    ) -> Floats:
        """[pieces] nats; without a question those of `rarity`."""
        nats = piece_nats(passage)
        if not query or not len(nats):
            return nats
        relevance = sentence_relevance(passage.pieces, query)
        return np.asarray(nats + _GAIN_NATS * relevance[passage.pieces.sentences])


def sentence_relevance(pieces: TextPieces, query: str) -> Floats:
    """[sentences] share of the question's information, 0 to 1, in each sentence."""
    asked, sentences = _asked(query), pieces.sentences
    # A word that a sentence has twice counts once.
    found = {
        (int(sentences[inside[0]]), stem): asked[stem]
        for stems, inside in _shared(pieces, asked)
        for stem in stems
    }
    held = np.zeros(int(sentences[-1]) + 1 if len(sentences) else 0)
    # Sorted: the order of a set, and so the rounding of the sum, differs between processes.
    for (sentence, _), weight in sorted(found.items()):
        held[sentence] += weight
    beside = np.pad(held, 1)
    # Neighbours of each sentence: those before are beside[:-2], those after beside[2:]; beyond the
    # ends it is 0. The maximum, because a sum could exceed 1.
    return np.asarray(np.maximum(held, _BESIDE * np.maximum(beside[:-2], beside[2:])))


def asked_pieces(pieces: TextPieces, query: str) -> Booleans:
    """[pieces] which pieces have a word of the question."""
    found = np.zeros(len(pieces.starts), dtype=bool)
    for stems, inside in _shared(pieces, _asked(query)):
        for n in inside:
            found[n] = has_stem(pieces.text[pieces.starts[n] : pieces.ends[n]], stems)
    return found


def _shared(
    pieces: TextPieces, asked: Mapping[str, float]
) -> Iterator[tuple[AbstractSet[str], range]]:
    """The stems of the question in each chunk that has some, and the pieces that it is in."""
    chunks, strange = pieces.words.chunks, asked.keys().isdisjoint
    hits = [n for n, chunk in enumerate(chunks) if not strange(chunk.stems)]
    if hits:
        # The first and the last part of each chunk, and the pieces that they are in.
        counts = np.array([len(chunk.kinds) for chunk in chunks[: hits[-1] + 1]], dtype=np.int64)
        parts = np.append(0, np.cumsum(counts))
        first, last = (
            np.searchsorted(pieces.parts, places, side="right") - 1
            for places in (parts[hits], parts[1:][hits] - 1)
        )
        for n, a, b in zip(hits, first.tolist(), last.tolist(), strict=True):
            yield chunks[n].stems.keys() & asked.keys(), range(a, b + 1)


@lru_cache(maxsize=16)
def _asked(query: str) -> Mapping[str, float]:
    """The stems in a question and their shares of its information. Cached: each segment asks."""
    weights = stem_weights(read(query))
    total = sum(weights.values()) or 1.0
    return {stem: weight / total for stem, weight in weights.items()}


def stem_weights(words: Words) -> dict[str, float]:
    """The stems of a text and the information of each, above that of common words."""
    weights: dict[str, float] = {}
    for chunk in words.chunks:
        for stem, nats in chunk.stems.items():
            # A word of a script without a list counts as rare.
            weight = (10.0 if nats != nats else nats) - _COMMON_NATS
            if weight > 0:
                weights[stem] = weight
    return weights
