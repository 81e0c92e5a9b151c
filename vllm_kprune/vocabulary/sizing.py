"""Cut a ranking where a profile says: each of its sizings chooses a point on the same ranking.

`target_size` names the size, `min_count` the least evidence, `coverage` the share of the evidence's
tokens that must be kept, and `max_extra_tokens` the price that each source of evidence may pay,
measured with the tokenizer pruned there.
"""

from collections.abc import Callable, Sequence

import numpy as np
from tokenizers import Tokenizer

from vllm_kprune.errors import KPruneError
from vllm_kprune.profile import Profile
from vllm_kprune.tokenizer.bpe import BpeTokenizer
from vllm_kprune.vocabulary.cost import EncodedTexts, encode_texts, shrink
from vllm_kprune.vocabulary.evidence import TokenRates
from vllm_kprune.vocabulary.selection import Ranking, Selection, rank_tokens, select_everything

__all__ = ["cut_ranking", "select_tokens"]

Progress = Callable[[float], None]


def select_tokens(
    parsed: BpeTokenizer,
    tokenizer: Tokenizer,
    profile: Profile,
    rates: Sequence[TokenRates],
    referenced: frozenset[str],
    progress: Progress | None = None,
) -> Selection:
    """Select tokens for a profile.

    `rates` are the evidence; `referenced` are token texts that configs or the chat template name.
    Raises `KPruneError` if the profile's sizing cannot be met: `target_size` is less than what must
    be kept, or more than the profile's scripts can use, or no size is as cheap as
    `max_extra_tokens`.
    """
    if profile.keeps_everything:
        return select_everything(parsed)
    ranking = rank_tokens(parsed, tokenizer, profile, rates, referenced)
    return cut_ranking(ranking, tokenizer, profile, progress)


def cut_ranking(
    ranking: Ranking, tokenizer: Tokenizer, profile: Profile, progress: Progress | None = None
) -> Selection:
    """The point of a ranking that a profile's sizing chooses; errors as for `select_tokens`."""
    if profile.target_size is not None:
        _check_size(ranking, profile.target_size, profile.name)
        return ranking.of_size(profile.target_size)
    if profile.coverage is not None:
        return ranking.first(_covering(ranking, profile.coverage))
    if profile.max_extra_tokens is not None:
        size = _cheap_enough(ranking, tokenizer, profile, progress or (lambda share: None))
        return ranking.of_size(size)
    threshold = max(profile.min_count or 0.0, np.nextafter(0, 1))
    return ranking.first(int(np.count_nonzero(ranking.strengths >= threshold)))


def _check_size(ranking: Ranking, size: int, name: str) -> None:
    if size < ranking.least:
        raise KPruneError(
            f"target size {size}: profile {name} must keep at least {ranking.least} tokens "
            "(special, byte and script tokens with their BPE ancestors)"
        )
    if size > (limit := len(ranking.parsed.tokens)):
        raise KPruneError(f"target size {size} is above the vocabulary of {limit} tokens")
    if size > ranking.most:
        raise KPruneError(
            f"target size {size}: the languages of profile {name} can use at most "
            f"{ranking.most} tokens; lower it, or add a language"
        )


def _covering(ranking: Ranking, coverage: float) -> int:
    """How many ranked tokens it takes until every source is covered; all, if it never is."""
    required, joining = sorted(ranking.required), list(ranking.joining)
    allowed = np.unique([*required, *ranking.ranked])
    counts = ranking.sizes - ranking.least
    covered = np.ones(len(counts), dtype=bool)
    for source in ranking.rates:
        rates = source.per_million
        gained = np.concatenate(([0.0], np.cumsum(rates[joining])))
        needed = coverage * rates[allowed].sum() - rates[required].sum()
        covered &= gained[counts] >= needed - 1e-6
    return int(np.argmax(covered)) if covered.any() else len(ranking.ranked)


def _cheap_enough(
    ranking: Ranking, tokenizer: Tokenizer, profile: Profile, progress: Progress
) -> int:
    """The smallest size whose extra tokens are within the profile's bound on every source.

    Found by bisection over the sizes that ranked tokens end at, so the next smaller one of them is
    above the bound.
    """
    bound = profile.max_extra_tokens
    assert bound is not None
    sizes = np.unique(ranking.sizes)
    least_sizes = ranking.least_sizes
    original = [encode_texts(tokenizer, rate.source, least_sizes) for rate in ranking.rates]

    def shrunk(texts: list[EncodedTexts], at: int) -> list[EncodedTexts]:
        return shrink(ranking.parsed, texts, int(sizes[at]), least_sizes)

    low, high = -1, len(sizes) - 1
    whole = high + 1
    texts = shrunk(original, high)
    _check_reachable(texts, original, bound, profile.name, int(sizes[high]))
    while high - low > 1:
        progress(1 - np.log2(high - low) / np.log2(whole + 1))
        middle = (low + high) // 2
        smaller = shrunk(texts, middle)
        if _dearest(smaller, original) <= bound:
            high, texts = middle, smaller
        else:
            low = middle
    return int(sizes[high])


def _dearest(texts: Sequence[EncodedTexts], original: Sequence[EncodedTexts]) -> float:
    pairs = zip(texts, original, strict=True)
    return max((after.extra(before) for after, before in pairs), default=0.0)


def _check_reachable(
    texts: Sequence[EncodedTexts],
    original: Sequence[EncodedTexts],
    bound: float,
    name: str,
    size: int,
) -> None:
    for after, before in zip(texts, original, strict=True):
        if (extra := after.extra(before)) > bound:
            raise KPruneError(
                f"max_extra_tokens {bound:g}: {after.source.name} needs {extra:.2%} more tokens "
                f"with all {size} that the languages of profile {name} can use; raise it, or add "
                "a language"
            )
