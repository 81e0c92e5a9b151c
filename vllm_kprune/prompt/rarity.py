"""The scorer `rarity`: pieces with surprising words stay, because frequent words can be guessed.

How surprising a word is comes from the word list of its language (see `words`). Words of a script
without a list are judged by token id, because BPE learns frequent tokens first. Grammar and the
question are not considered.
"""

import math

import numpy as np

from vllm_kprune.arrays import Floats
from vllm_kprune.prompt.cut_text import CutText
from vllm_kprune.prompt.tokens import IsCancelled
from vllm_kprune.prompt.word_lists import UNLISTED_NATS

__all__ = ["Rarity", "piece_nats"]

# Zipf's law: of V words, the one of rank r has a frequency of about 1 / (r ln V), and ln V = 12 for
# a vocabulary. So a token with id r has ln r + ln 12 nats.
_ZIPF_NATS = math.log(12.0)
_TIE_NATS = 0.01


class Rarity:
    """Scores a piece by the self-information, in nats, of its rarest word."""

    name = "rarity"
    uses_query = False

    def scores(
        self, passage: CutText, *, query: str | None = None, cancelled: IsCancelled | None = None
    ) -> Floats:
        """[pieces] nats."""
        return piece_nats(passage)


def piece_nats(passage: CutText) -> Floats:
    """[pieces] self-information.

    Up to 0.01 nats are added, so that no two pieces are equal. Multiples of the golden ratio,
    modulo 1, are spread evenly, so dropped pieces do not cluster in one part of the text.
    """
    nats = passage.pieces.nats
    if np.isnan(nats).any():
        ranks = np.asarray(passage.tokens.ids, dtype=np.float32) + 1
        by_id = passage.pieces.means(np.minimum(np.log(ranks) + _ZIPF_NATS, UNLISTED_NATS))
        nats = np.where(np.isnan(nats), by_id, nats)
    # Equal scores would be dropped from the end of the text on, see `PieceChoice`.
    spread = np.arange(len(nats)) * ((math.sqrt(5) - 1) / 2) % 1
    return np.asarray(nats + _TIE_NATS * spread)
