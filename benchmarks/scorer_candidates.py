"""Baselines for `litepruner_quality.py --candidates` that kprune does not ship.

`overlap`: whole sentences by their words in common with the question, no words inside them.
`stopwords`: what is frequent goes first, and everything else at random.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from vllm_kprune.arrays import Floats
from vllm_kprune.prompt.cut_text import CutText
from vllm_kprune.prompt.question import sentence_relevance
from vllm_kprune.prompt.scorers import RandomScores, Scorer

_FREQUENT_NATS = 7.0


class Overlap:
    """Sentences by their relevance; in one sentence, the earlier words first."""

    name = "overlap"
    uses_query = True

    def scores(
        self, passage: CutText, *, query: str | None = None, cancelled: object = None
    ) -> Floats:
        """[pieces] relevance of the sentence, less the place in the text."""
        pieces = passage.pieces
        relevance = sentence_relevance(pieces, query or "")[pieces.sentences]
        return np.asarray(relevance - 1e-6 * np.arange(len(relevance)))


class StopWords:
    """Frequent words and marks go first."""

    name = "stopwords"
    uses_query = False

    def scores(
        self, passage: CutText, *, query: str | None = None, cancelled: object = None
    ) -> Floats:
        """[pieces] uniform in [0, 1), 1 more for what is not frequent."""
        chance = RandomScores().scores(passage)
        return np.asarray(chance + (np.nan_to_num(passage.pieces.nats, nan=99.0) > _FREQUENT_NATS))


CANDIDATES: Mapping[str, Callable[[Path], Scorer]] = {
    "overlap": lambda folder: Overlap(),
    "stopwords": lambda folder: StopWords(),
}
