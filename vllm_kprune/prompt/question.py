"""Rarity, plus a bonus for sentences that share words with the question.

What is asked for usually stands near the question's own words. Every token of a sentence gains with
the information of the question's words in it, and those of the neighbouring sentences gain less.
This compares words, not meanings. A passage is pruned differently for every question, so a prefix
cache misses; that is why this is not the default. Without a question it is `rarity`.
"""

import itertools
from collections.abc import Mapping
from functools import lru_cache
from unicodedata import normalize

import numpy as np
import numpy.typing as npt
import regex

from vllm_kprune.prompt.rarity import Rarity, Words, find_words
from vllm_kprune.prompt.tokens import IsCancelled, Tokens

__all__ = ["Question", "sentence_relevance"]

_GAIN_NATS = 10.0  # for a sentence with all of the question's words
_BESIDE = 0.3  # the share of it for the sentences before and after
_COMMON_NATS = 6.0  # words below this say nothing about the subject
_STEM = 5  # letters that inflection leaves unchanged: rivers, river's -> river
# 。 ends a sentence by itself; "." only before a blank, so that 3.5 is not cut.
_SENTENCE_END = regex.compile(r"(?<=[.!?।]\s)|(?<=[。！？\n])")


class Question:
    """Scores in nats: the information of words, and up to 10 more in sentences asked about."""

    name = "question"
    uses_query = True

    def __init__(self) -> None:
        self._rarity = Rarity()

    def scores(
        self,
        tokens: Tokens,
        *,
        query: str | None = None,
        cancelled: IsCancelled | None = None,
    ) -> npt.NDArray[np.float32]:
        """[tokens] nats; without a question those of `rarity`."""
        nats = self._rarity.scores(tokens)
        if not query or not tokens.ids:
            return nats
        return (nats + _GAIN_NATS * sentence_relevance(tokens, query)).astype(np.float32)


def sentence_relevance(tokens: Tokens, query: str) -> npt.NDArray[np.float64]:
    """[tokens] share of the question's information, 0 to 1, that is in the token's sentence."""
    asked = _asked(query)
    words = find_words(tokens.text)
    ends = [match.start() for match in _SENTENCE_END.finditer(tokens.text)]
    first_words = np.searchsorted(words.starts, ends).tolist()
    stems = _stems(words, tokens.text)
    held = np.zeros(len(ends) + 1)
    for n, (start, end) in enumerate(itertools.pairwise([0, *first_words, len(stems)])):
        # Not a set: its order, and so the rounding of the sum, differs between processes.
        held[n] = sum(asked.get(stem, 0.0) for stem in dict.fromkeys(stems[start:end]))
    beside = np.pad(held, 1)
    # Neighbours of each sentence: those before are beside[:-2], those after beside[2:]; beyond the
    # ends it is 0. The maximum, because a sum could exceed 1.
    held = np.maximum(held, _BESIDE * np.maximum(beside[:-2], beside[2:]))
    # By its last character: " The" begins with the blank that ends the sentence before.
    lasts = np.array([max(begin, end - 1) for begin, end in tokens.offsets])
    return np.asarray(held[np.searchsorted(ends, lasts, side="right")])


@lru_cache(maxsize=16)
def _asked(query: str) -> Mapping[str, float]:
    """The stems in a question and their shares of its information. Cached: each segment asks."""
    words = find_words(query)
    # A word of a script without a list counts as rare; one of at most 6 nats has no weight.
    nats = np.nan_to_num(words.nats, nan=10.0) - _COMMON_NATS
    weights = dict(zip(_stems(words, query), np.maximum(nats, 0).tolist(), strict=True))
    total = sum(weights.values()) or 1.0
    return {stem: weight / total for stem, weight in weights.items()}


def _stems(words: Words, text: str) -> list[str]:
    spans = zip(words.starts.tolist(), words.ends.tolist(), strict=True)
    # Cutting is all the stemming there is. Korean particles are words of their own by now.
    return [normalize("NFC", text[start:end]).lower()[:_STEM] for start, end in spans]
