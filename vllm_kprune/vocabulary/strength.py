"""Rank tokens by the share of text that they serve.

Word lists and tables of text leave many tokens of a vocabulary with few occurrences or none, and
casing and punctuation that running text has are not in a list of words. Two things help:

- Tokens that spell one word (`tesla`, ` Tesla`, `_tesla`) share that word's frequency in proportion
  to the tokenizer's own training: a merge that was learned earlier was more frequent (Sennrich et
  al. 2016, section 3.2), and frequency falls about as a power of the rank (Zipf).
- The estimate is pooled with the one that the merge's rank alone gives, as a weighted geometric
  mean (logarithmic opinion pool; Genest and Zidek 1986). A token without any evidence keeps none,
  however early it was learned: it may belong to another language.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import regex

from vllm_kprune.arrays import Floats
from vllm_kprune.tokenizer.bpe import BpeTokenizer
from vllm_kprune.vocabulary.evidence import TokenRates

__all__ = ["token_strengths"]

# Weights were chosen on Korean, English and code that is no evidence, for the tokenizers of
# Qwen3, Llama-3.1, Gemma-3 and Aya Expanse (benchmarks/selection.py).
_SHARE_EXPONENT = 1.8
_PRIOR_WEIGHT = 0.4
# Of tokens as they were counted, and of their words' frequencies, shared among spellings. Tables
# and corpora are running text; a word list says nothing of how its words are written.
_TEXT_WEIGHTS = (8.0, 2.4)
_LIST_WEIGHT = 0.3  # the words' own weight is the source's
_ZIPF = 1e6 / 12  # occurrences per million tokens at rank 1: 1 / (ln 150,000)
_MOST_UNSPACED = 16  # characters
_UNSPACED = regex.compile(r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}]")
_WORD = regex.compile(r"[^\p{L}\p{N}]*(\p{L}+)")


def token_strengths(
    parsed: BpeTokenizer, rates: Sequence[TokenRates], ids: Iterable[int]
) -> dict[int, float]:
    """Estimated occurrences per million tokens of running text in any of the sources, for `ids`."""
    ids = list(ids)
    ranks = _merge_ranks(parsed)
    spellings = _spellings(parsed, ids, ranks)
    total = sum((_estimate(source, spellings) for source in rates), np.zeros(len(ranks)))
    prior = _ZIPF / ranks
    pooled = np.where(total > 0, total ** (1 - _PRIOR_WEIGHT) * prior**_PRIOR_WEIGHT, 0.0)
    return {i: float(pooled[i]) for i in ids}


@dataclass(frozen=True)
class _Spellings:
    """Words in lower case, and the tokens that spell them, in any case and after any marks.

    Token `ids[n]` spells word number `word_of[n]`, and `shares[n]` of its occurrences.
    """

    words: Sequence[str]
    ids: npt.NDArray[np.int64]
    word_of: npt.NDArray[np.int64]
    shares: Floats


def _spellings(parsed: BpeTokenizer, ids: Iterable[int], ranks: Floats) -> _Spellings:
    numbers: dict[str, int] = {}
    spelling, word_of = [], []
    for token_id in ids:
        text = parsed.token_bytes(token_id).decode(errors="replace")
        if match := _WORD.fullmatch(text):
            spelling.append(token_id)
            word_of.append(numbers.setdefault(match[1].casefold(), len(numbers)))
    tokens, words = np.array(spelling, dtype=np.int64), np.array(word_of, dtype=np.int64)
    shares = ranks[tokens] ** -_SHARE_EXPONENT
    shares /= np.bincount(words, weights=shares)[words]
    return _Spellings(list(numbers), tokens, words, shares)


def _estimate(source: TokenRates, spellings: _Spellings) -> Floats:
    """Rates of one source, with each word's frequency shared among the tokens that spell it."""
    observed, word_of = source.per_million, spellings.word_of
    if source.source.words is None:
        as_counted, as_words = _TEXT_WEIGHTS
        frequencies = np.bincount(word_of, weights=observed[spellings.ids])
    else:
        as_counted, as_words = _LIST_WEIGHT, source.source.words_weight
        known = source.source.words()
        frequencies = np.array([_frequency(word, known) * 1e6 for word in spellings.words])
    estimate = as_counted * observed
    estimate[spellings.ids] += as_words * frequencies[word_of] * spellings.shares
    return estimate


def _frequency(text: str, words: Mapping[str, float]) -> float:
    """Frequency of a word; in scripts without spaces also of words that follow one another.

    Tokens of Chinese span words as they come. Taking words as independent, a sequence is as
    frequent as the product of theirs; the likeliest division counts.
    """
    if not _UNSPACED.match(text):
        return words.get(text, 0.0)
    best = [1.0]
    for end in range(1, min(len(text), _MOST_UNSPACED) + 1):
        best.append(max(best[at] * words.get(text[at:end], 0.0) for at in range(end)))
    return best[-1]


def _merge_ranks(parsed: BpeTokenizer) -> Floats:
    """For each id the rank of the first merge that makes it, from 1; the last for all others."""
    ranks = np.full(max(parsed.tokens) + 1, float(len(parsed.merges) + 1))
    for rank in range(len(parsed.merges), 0, -1):
        left, right = parsed.merges[rank - 1]
        if (made := parsed.vocab.get(left + right)) is not None:
            ranks[made] = rank
    return ranks
