"""The scorer `sentences`: sentences that do not matter go whole, and the last to stay loses words.

Sentences are ranked by what they share with the question (see `question`), then by their place. The
best stay whole while there is room. In the one that does not fit, the question's words stay
longest, then rare ones. Without a question, or if no sentence shares anything with it, it is
`rarity`.
"""

import numpy as np

from vllm_kprune.arrays import Floats
from vllm_kprune.prompt.cut_text import CutText
from vllm_kprune.prompt.question import asked_pieces, sentence_relevance
from vllm_kprune.prompt.rarity import piece_nats
from vllm_kprune.prompt.tokens import IsCancelled

__all__ = ["Sentences"]

_ASKED_NATS = 20.0  # more than any word has, so the question's words are before rarer ones
_RANK_NATS = 100.0  # and more than both, so a better sentence is always before any word


class Sentences:
    """Scores in nats: the information of words, 20 more for the question's own, less 100 for each
    better sentence.
    """

    name = "sentences"
    uses_query = True

    def scores(
        self, passage: CutText, *, query: str | None = None, cancelled: IsCancelled | None = None
    ) -> Floats:
        """[pieces] nats; without a question those of `rarity`."""
        nats = piece_nats(passage)
        if not query or not len(nats):
            return nats
        pieces = passage.pieces
        relevance = sentence_relevance(pieces, query)
        if not relevance.any():
            return nats
        rank = np.empty(len(relevance))
        rank[np.argsort(-relevance, kind="stable")] = np.arange(len(relevance))
        asked = asked_pieces(pieces, query)
        return np.asarray(nats + _ASKED_NATS * asked - _RANK_NATS * rank[pieces.sentences])
