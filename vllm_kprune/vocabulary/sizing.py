"""Cut a ranking where a profile says. Each kind of sizing chooses a point on the same ranking.

`target_size` is the size itself, `min_count` the least evidence for a token, `coverage` the share
of the evidence's tokens that must be kept. `max_extra_tokens` is the share of extra tokens that
each source may cost, measured by encoding it with the tokenizer pruned to that size. Texts with
letters of other languages are left out of both: no size could serve them.

A vocabulary without one token of another language was pruned to these languages before. Every
sizing but `target_size` leaves it as it is (law 5): what it lost cannot be counted any more, so a
share of what is left would be cut again with each build.
"""

from collections.abc import Sequence

import numpy as np
from tokenizers import Tokenizer

from vllm_kprune.errors import KPruneError
from vllm_kprune.profile import Profile
from vllm_kprune.progress import ShareDone
from vllm_kprune.tokenizer.bpe import BpeTokenizer
from vllm_kprune.vocabulary.cost import encode_texts, expected_extra, shrink
from vllm_kprune.vocabulary.evidence import TokenRates
from vllm_kprune.vocabulary.selection import Ranking, Selection, rank_tokens, select_everything

__all__ = ["cut_ranking", "select_tokens"]

# Share of a size. A closer search would cost more time than a few tokens are worth.
_TOLERANCE = 1e-3


def select_tokens(
    parsed: BpeTokenizer,
    tokenizer: Tokenizer,
    profile: Profile,
    rates: Sequence[TokenRates],
    referenced: frozenset[str],
    progress: ShareDone | None = None,
) -> Selection:
    """Select tokens for a profile.

    `rates` are the evidence; `referenced` are texts of tokens that configs or the chat template
    name. Raises `KPruneError` if the profile's sizing cannot be met: `target_size` is smaller than
    what must be kept or larger than what the profile's scripts can use, or even the largest size
    costs more than `max_extra_tokens`.
    """
    if profile.keeps_everything:
        return select_everything(parsed)
    ranking = rank_tokens(parsed, tokenizer, profile, rates, referenced)
    return cut_ranking(ranking, tokenizer, profile, progress)


def cut_ranking(
    ranking: Ranking, tokenizer: Tokenizer, profile: Profile, progress: ShareDone | None = None
) -> Selection:
    """The selection that a profile's sizing chooses. Raises as `select_tokens` does."""
    if profile.target_size is not None:
        _check_size(ranking, profile.target_size, profile.name)
        return ranking.of_size(profile.target_size)
    if ranking.most == len(ranking.parsed.tokens):
        return ranking.of_size(ranking.most)
    if profile.coverage is not None:
        return ranking.first(_covering(ranking, profile.coverage))
    if profile.max_extra_tokens is not None:
        size = _cheap_enough(ranking, tokenizer, profile, progress or (lambda share: None))
        return ranking.of_size(size)
    # Without any sizing, every token with evidence is kept: the least positive number decides.
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
    """How many ranked tokens it takes to cover every source; all of them if that is never so."""
    required, joining = sorted(ranking.required), list(ranking.joining)
    allowed = np.unique([*required, *ranking.ranked])
    counts = ranking.sizes - ranking.least
    covered = np.ones(len(counts), dtype=bool)
    for source in ranking.rates:
        rates = source.per_million
        # gained[n]: what the first n of `joining` add to what the required tokens cover.
        gained = np.concatenate(([0.0], np.cumsum(rates[joining])))
        needed = coverage * rates[allowed].sum() - rates[required].sum()
        # Sums in another order differ in the last digits; without the margin, coverage 1 might
        # never be reached. Rates are per million, so it is a millionth of a millionth.
        covered &= gained[counts] >= needed - 1e-6
    return int(np.argmax(covered)) if covered.any() else len(ranking.ranked)


def _cheap_enough(
    ranking: Ranking, tokenizer: Tokenizer, profile: Profile, progress: ShareDone
) -> int:
    """The smallest size whose share of extra tokens is within the bound on every source.

    Exact to a thousandth: both the result and a size that is too small were measured, and the two
    differ by at most that, or are neighbours in the ranking.
    """
    bound = profile.max_extra_tokens
    assert bound is not None
    # What a server counted has no text to encode; it counts in the ranking.
    rates = [rate for rate in ranking.rates if rate.source.usage is None]
    if not rates:
        return ranking.least
    search = _Search(ranking, rates, tokenizer, bound)
    while not search.done:
        search.measure(search.next_place())
        # How many measurements it takes is not known: a half, two thirds, three quarters, and so
        # on.
        progress(1 - 1 / (1 + search.measured))
    return int(search.sizes[search.high])


class _Search:
    """Search between `low`, which costs too much, and `high`, which does not: indices of `sizes`.

    At first they are just outside, -1 and `len(sizes)`. `expected` is an estimate for all sizes,
    shifted to agree with the last measurement. It is close, so only a few sizes are measured. If it
    were wrong, more would be, but the result would be the same.
    """

    def __init__(
        self, ranking: Ranking, rates: Sequence[TokenRates], tokenizer: Tokenizer, bound: float
    ) -> None:
        self.ranking, self.bound = ranking, bound
        # Increasing and without repeats: `expected_extra` and `searchsorted` rely on it.
        self.sizes = np.unique(ranking.sizes)
        self.low, self.high = -1, len(self.sizes)
        self.measured = self._in_a_row = 0
        self._rose = False
        least_sizes = ranking.least_sizes
        # The largest size serves what is left as the original does (law 1), so each bound is met.
        self.original = [
            encode_texts(tokenizer, rate.source, least_sizes).without_foreign() for rate in rates
        ]
        # Encoded with the smallest size that fits so far (`high`). All later sizes are below it,
        # and `shrink` can only go down; so a size that costs too much never takes its place.
        self.texts = self.original
        self.expected = expected_extra(ranking.parsed, rates, least_sizes, self.sizes)

    @property
    def done(self) -> bool:
        """Is nothing left to measure between `low` and `high`?"""
        if self.low < 0 or self.high == len(self.sizes):
            return self.high - self.low <= 1
        close = self.sizes[self.low] >= self.sizes[self.high] * (1 - _TOLERANCE)
        return bool(close) or self.high - self.low <= 1

    def next_place(self) -> int:
        """The size to measure next: where the estimate meets the bound, with a margin.

        After a measurement the estimate often names that size again. A step of one tolerance beyond
        it would end the search if the next measurement falls on the other side; while it does
        not, the step is doubled.
        """
        fits = (self.expected <= self.bound).all(axis=0)
        place = int(np.argmax(fits)) if fits.any() else len(self.sizes) - 1
        # 0.999 after one measurement on this side, 0.998 after two in a row, then 0.996; at least
        # 0.5.
        beyond = 1 - min(_TOLERANCE * 2 ** (self._in_a_row - 1), 0.5)
        if self._in_a_row and self._rose:
            higher = np.searchsorted(self.sizes, self.sizes[self.low] / beyond, side="right") - 1
            place = max(place, int(higher))
        elif self._in_a_row:
            place = min(place, int(np.searchsorted(self.sizes, self.sizes[self.high] * beyond)))
        # Strictly between the two, so each measurement narrows them and the search ends.
        return min(max(place, self.low + 1), self.high - 1)

    def measure(self, place: int) -> None:
        """Encode the sources with the vocabulary of a size, which becomes `low` or `high`."""
        parsed, least_sizes = self.ranking.parsed, self.ranking.least_sizes
        texts = shrink(parsed, self.texts, int(self.sizes[place]), least_sizes)
        pairs = zip(texts, self.original, strict=True)
        extra = np.array([after.extra(before) for after, before in pairs])
        # What the estimate leaves out (see `expected_extra`) is taken to be the same at sizes
        # nearby, so the whole curve of a source moves by it.
        self.expected += (extra - self.expected[:, place])[:, np.newaxis]
        rose = bool((extra > self.bound).any())
        if rose:
            self.low = place
        else:
            self.high, self.texts = place, texts
        self.measured += 1
        self._in_a_row = self._in_a_row + 1 if rose == self._rose else 1
        self._rose = rose
