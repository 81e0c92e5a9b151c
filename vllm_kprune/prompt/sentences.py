"""The scorer `sentences`: sentences that do not matter go whole, the others lose words."""

import numpy as np

from vllm_kprune.arrays import Floats
from vllm_kprune.prompt.cut_text import CutText
from vllm_kprune.prompt.question import sentence_relevance
from vllm_kprune.prompt.rarity import piece_nats
from vllm_kprune.prompt.tokens import IsCancelled

__all__ = ["Sentences"]

_INSIDE = 1.0
_GAIN_NATS = 10.0
_DROPPED_NATS = 1000.0


class Sentences:
    """Scores in nats. Without a question it is `rarity`."""

    name = "sentences"
    uses_query = True

    def scores(
        self, passage: CutText, *, query: str | None = None, cancelled: IsCancelled | None = None
    ) -> Floats:
        """[pieces] nats, a thousand less in sentences that go whole."""
        nats = piece_nats(passage)
        if not query or not len(nats):
            return nats
        pieces = passage.pieces
        relevance = sentence_relevance(pieces, query)
        sizes = np.bincount(pieces.sentences, weights=pieces.sizes)
        order = np.argsort(-relevance, kind="stable")
        before = np.cumsum(sizes[order]) - sizes[order]
        dropped = np.zeros(len(relevance), dtype=bool)
        dropped[order[before >= passage.share * sizes.sum() / _INSIDE]] = True
        return np.asarray(
            nats + (_GAIN_NATS * relevance - _DROPPED_NATS * dropped)[pieces.sentences]
        )
