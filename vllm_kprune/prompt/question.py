"""Sentences that share words with the question: how much of what is asked is in each.

What is asked for usually stands near the question's own words. A sentence has the share of the
question's information that is in its words, and at least 0.3 of that of its neighbours. This
compares words, not meanings. The scorer `question` adds it to `rarity`.
"""

from collections.abc import Mapping
from functools import lru_cache

import numpy as np

from vllm_kprune.arrays import Floats
from vllm_kprune.prompt.cut_text import CutText
from vllm_kprune.prompt.pieces import TextPieces
from vllm_kprune.prompt.rarity import piece_nats
from vllm_kprune.prompt.tokens import IsCancelled
from vllm_kprune.prompt.words import Words, read

__all__ = ["Question", "sentence_relevance"]

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
    held = shared(pieces, _asked(query))
    beside = np.pad(held, 1)
    # Neighbours of each sentence: those before are beside[:-2], those after beside[2:]; beyond the
    # ends it is 0. The maximum, because a sum could exceed 1.
    return np.asarray(np.maximum(held, _BESIDE * np.maximum(beside[:-2], beside[2:])))


def shared(pieces: TextPieces, asked: Mapping[str, float]) -> Floats:
    """[sentences] the sum of the weights of the stems that are in each."""
    sentences = pieces.sentences
    found: dict[tuple[int, str], float] = {}
    chunks, strange = pieces.words.chunks, asked.keys().isdisjoint
    hits = [n for n, chunk in enumerate(chunks) if not strange(chunk.stems)]
    if hits:
        # The first part of each chunk, and the piece that it is in.
        counts = np.array([len(chunk.kinds) for chunk in chunks[: hits[-1]]], dtype=np.int64)
        parts = np.append(0, np.cumsum(counts))[hits]
        inside = np.searchsorted(pieces.parts, parts, side="right") - 1
        for n, sentence in zip(hits, sentences[inside].tolist(), strict=True):
            for stem in chunks[n].stems.keys() & asked.keys():
                found[sentence, stem] = asked[stem]
    held = np.zeros(int(sentences[-1]) + 1 if len(sentences) else 0)
    # Sorted: the order of a set, and so the rounding of the sum, differs between processes.
    for (sentence, _), weight in sorted(found.items()):
        held[sentence] += weight
    return held


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
