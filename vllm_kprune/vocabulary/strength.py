"""Rank tokens by the share of text that they serve, in all sources alike.

A token serves where it occurs, and where it is a step on the way to a longer one
(`tokenizer/steps.py`). Sources are weighed so that each loses about the same share (`balance.py`).

Evidence leaves many tokens of a vocabulary with few occurrences or none, and a word list does not
say how its words are written. Two things help:

- Tokens that spell one word (`tesla`, ` Tesla`, `_tesla`) share that word's frequency. The earlier
  a tokenizer learned a merge, the more frequent it was in the tokenizer's own training text
  (Sennrich et al. 2016, section 3.2), and frequency falls about as a power of the rank (Zipf). So
  the shares are powers of the merges' ranks.
- The estimate is pooled with one from the merge's rank alone, as a weighted geometric mean
  (logarithmic opinion pool; Genest and Zidek 1986). A token without any evidence stays at 0,
  however early it was learned: it may belong to another language.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import regex

from vllm_kprune.arrays import Floats
from vllm_kprune.tokenizer.bpe import BpeTokenizer
from vllm_kprune.tokenizer.steps import merge_steps
from vllm_kprune.vocabulary.balance import balanced_weights
from vllm_kprune.vocabulary.evidence import TokenRates

__all__ = ["WeighedEvidence", "in_order", "weigh_evidence"]

# Chosen with the tokenizers of Qwen3, Llama-3.1, Gemma-3 and Aya Expanse, on Korean, English and
# code that the evidence does not contain (benchmarks/selection.py).
_SHARE_EXPONENT = 1.8
_PRIOR_WEIGHT = 0.3
# Weights of (tokens as counted, frequencies of words shared among their spellings). Tables and
# corpora are running text, so their counts weigh most. A word list's counts weigh little, because
# its spellings are guesses; the weight of its words is the source's own.
_TEXT_WEIGHTS = (8.0, 2.4)
_LIST_WEIGHT = 0.3
# At which coverage all sources are to be served alike: near that of the shipped profiles.
_BALANCED_AT = 0.995
# A source that the balance could do without still weighs half of the average: what it has, other
# texts of its kind have, too. Without a floor, code that the evidence does not contain costs a
# tenth more; with 1, which is no balance, English prose costs twice as much.
_LEAST_WEIGHT = 0.5
_ZIPF = 1e6 / 12  # occurrences per million tokens at rank 1: 1 / (ln 150,000)
_MOST_UNSPACED = 16  # characters
_UNSPACED = regex.compile(r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}]")
_WORD = regex.compile(r"[^\p{L}\p{N}]*(\p{L}+)")


@dataclass(frozen=True)
class WeighedEvidence:
    """What sources lose with each token that is dropped, and how strong that makes the token.

    `losses`: for each source, the extra tokens per million of its own for an id that is not kept
    (float64 [sources, ids]); 0 for ids that no vocabulary has. `tokens`: of a million tokens, how
    many the profile's scripts allow (float64 [sources]). `strengths`: the balanced sum over the
    sources, smoothed, in occurrences per million tokens (float64 [ids]).
    """

    losses: Floats
    tokens: Floats
    strengths: Floats

    def budgets(self, rates: Sequence[TokenRates], coverage: float) -> Floats:
        """What each source may lose of `tokens` at a coverage (float64 [sources])."""
        allowances = np.array([one.source.allowance for one in rates])
        return (1 - coverage) * allowances * self.tokens


def weigh_evidence(
    parsed: BpeTokenizer, rates: Sequence[TokenRates], ids: Sequence[int], required: Iterable[int]
) -> WeighedEvidence:
    """Weigh the tokens `ids`, which evidence decides on; `required` are kept besides."""
    size = max(parsed.tokens) + 1
    candidates = np.array(ids, dtype=np.int64)
    allowed = np.zeros(size, dtype=bool)
    allowed[[*candidates.tolist(), *required]] = True
    # Tokens of foreign scripts are dropped in any case, but the steps on the way to them serve.
    used = sum((one.per_million for one in rates), allowed.astype(np.float64))
    steps = merge_steps(parsed, np.flatnonzero(used).tolist()).within(candidates)
    ranks = _merge_ranks(parsed)
    spellings = _spellings(parsed, ids, ranks)
    estimates = [_estimate(one, spellings) for one in rates]

    def strengths(weights: Floats) -> Floats:
        # A sum over sources: each is in rates per million, so none counts more for being longer.
        pairs = zip(weights.tolist(), estimates, strict=True)
        total = sum((weight * one for weight, one in pairs), np.zeros(size))
        return steps.uses(_pooled(total, ranks))

    shape = (len(rates), size)
    losses = np.array([steps.uses(one.per_million) for one in rates]).reshape(shape)
    tokens = np.array([one.per_million[allowed].sum() for one in rates])
    evidence = WeighedEvidence(losses, tokens, np.zeros(size))
    weights = balanced_weights(
        losses,
        evidence.budgets(rates, _BALANCED_AT),
        lambda weights: in_order(candidates, strengths(weights)),
    )
    return replace(evidence, strengths=strengths(np.maximum(weights, _LEAST_WEIGHT)))


def in_order(ids: npt.NDArray[np.int64], strengths: Floats) -> npt.NDArray[np.int64]:
    """The ids, strongest first.

    Ids decide between equals, so that the same input always gives the same vocabulary (law 5).
    """
    ordered: npt.NDArray[np.int64] = ids[np.lexsort((ids, -strengths[ids]))]
    return ordered


def _pooled(total: Floats, ranks: Floats) -> Floats:
    """Pool rates from the evidence with those that merge ranks alone suggest.

    A token has 50 occurrences per million, and its merge has rank 1,000. Zipf's law suggests 83 at
    that rank, and the weighted geometric mean of the two, 50 ** 0.7 * 83 ** 0.3, is 58. Without
    evidence the same token stays at 0.

    >>> _pooled(np.array([50.0, 0.0]), np.array([1000.0, 1000.0])).round(1).tolist()
    [58.3, 0.0]
    """
    prior = _ZIPF / ranks
    return np.where(total > 0, total ** (1 - _PRIOR_WEIGHT) * prior**_PRIOR_WEIGHT, 0.0)


@dataclass(frozen=True)
class _WordSpellings:
    """Words in lower case, and the tokens that spell them: in any case, and after any marks.

    Token `ids[n]` spells word number `word_of[n]`, in `shares[n]` of the word's occurrences.
    """

    words: Sequence[str]
    ids: npt.NDArray[np.int64]
    word_of: npt.NDArray[np.int64]
    shares: Floats


def _spellings(parsed: BpeTokenizer, ids: Iterable[int], ranks: Floats) -> _WordSpellings:
    numbers: dict[str, int] = {}
    spelling, word_of = [], []
    for token_id in ids:
        text = parsed.token_bytes(token_id).decode(errors="replace")
        # `Tesla`, ` Tesla`, `_tesla` and `("TESLA` are all spellings of "tesla".
        if match := _WORD.fullmatch(text):
            spelling.append(token_id)
            word_of.append(numbers.setdefault(match[1].casefold(), len(numbers)))
    tokens, words = np.array(spelling, dtype=np.int64), np.array(word_of, dtype=np.int64)
    return _WordSpellings(list(numbers), tokens, words, _shares(ranks[tokens], words))


def _shares(ranks: Floats, word_of: npt.NDArray[np.int64]) -> Floats:
    """Divide each word among the tokens that spell it, by the ranks of their merges.

    Word 0 has two spellings, of ranks 10 and 40. The later one is 4 times as far down the ranking,
    so it gets 4 ** -1.8 = 0.08 of what the earlier one gets. Word 1 has a single spelling.

    >>> _shares(np.array([10.0, 40.0, 99.0]), np.array([0, 0, 1])).round(2).tolist()
    [0.92, 0.08, 1.0]
    """
    weights = ranks**-_SHARE_EXPONENT
    # bincount sums the weights of each word; indexed by word_of, each token gets its word's sum.
    return weights / np.bincount(word_of, weights=weights)[word_of]


def _estimate(source: TokenRates, spellings: _WordSpellings) -> Floats:
    """Rates of one source, with each word's frequency shared among the tokens that spell it."""
    observed, word_of = source.per_million, spellings.word_of
    if source.source.words is None:
        as_counted, as_words = _TEXT_WEIGHTS
        # Running text has no list of words: a word is as frequent as its spellings together.
        frequencies = np.bincount(word_of, weights=observed[spellings.ids])
    else:
        # A list has no text of its own to count in: `observed` comes from spellings that
        # `word_forms` made up.
        as_counted, as_words = _LIST_WEIGHT, source.source.words_weight
        known = source.source.words()
        frequencies = np.array([_frequency(word, known) * 1e6 for word in spellings.words])
    estimate = as_counted * observed
    # A token that spells no word, such as a mark or a part of a character, keeps what was counted.
    estimate[spellings.ids] += as_words * frequencies[word_of] * spellings.shares
    return estimate


def _frequency(text: str, words: Mapping[str, float]) -> float:
    """Frequency of a word, or of a sequence of words in scripts that write no spaces.

    Tokens of Chinese span several words. If words are independent, the frequency of a sequence is
    the product of theirs. Of all ways to divide a text into words, the likeliest counts:

    >>> _frequency("你好吗", {"你": 0.03, "好": 0.01, "你好": 0.002, "吗": 0.01})  # 你好 + 吗
    2e-05
    """
    if not _UNSPACED.match(text):
        return words.get(text, 0.0)
    best = [1.0]  # best[n]: the likeliest division of the first n characters
    for end in range(1, min(len(text), _MOST_UNSPACED) + 1):
        # A division of the first `end` characters is one of the first `at`, and a last word.
        best.append(max(best[at] * words.get(text[at:end], 0.0) for at in range(end)))
    return best[-1]


def _merge_ranks(parsed: BpeTokenizer) -> Floats:
    """For each id the rank of the first merge that makes it, from 1.

    Ids that no merge makes get the rank after the last.
    """
    ranks = np.full(max(parsed.tokens) + 1, float(len(parsed.merges) + 1))
    # Backwards: of several merges that make a token, the earliest is written last and stays.
    for rank in range(len(parsed.merges), 0, -1):
        left, right = parsed.merges[rank - 1]
        if (made := parsed.vocab.get(left + right)) is not None:
            ranks[made] = rank
    return ranks
