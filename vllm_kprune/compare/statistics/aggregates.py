"""How the features of all items become one score: the table `AGGREGATES`.

Each row computes a score for every resample at once, from the features [items, k] and weights
[resamples, items] that say how often each item was drawn. Intervals and tests therefore need to
know nothing about the score. With the `ratio` of three items (1 of 2, 0 of 2 and 4 of 4 lines
passed), the resample that draws the first item twice and the last one once has

    weights    [[2, 0, 1]]
    sums       2 x [1, 2] + 0 x [0, 2] + 1 x [4, 4] = [6, 8]
    score      6 / 8 = 0.75
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from vllm_kprune.compare.measurements import Floats
from vllm_kprune.compare.statistics.corpus_scores import bleu, chrf

__all__ = ["AGGREGATES", "Aggregate"]

Indices = NDArray[np.int64]

# With at least this many values for each item, bisection is faster than counting up.
_MANY_VALUES = 8


@dataclass(frozen=True)
class Aggregate:
    """One way to sum up items.

    `columns` is the number of features of an item, or of each of its groups if `grouped`. None
    stands for any number; shorter items are then padded with NaN. `quantile` is the share of values
    below, for a quantile. `sampled` is False for values that are counted rather than sampled.
    """

    columns: int | None
    compute: Callable[[Floats, Floats], Floats]
    quantile: float | None = None
    sampled: bool = True
    grouped: bool = False

    def fits(self, width: int) -> bool:
        """Whether items may have this many features."""
        if self.columns is None or width == self.columns:
            return True
        return self.grouped and width > 0 and width % self.columns == 0


def _of_sums(function: Callable[[Floats], Floats]) -> Callable[[Floats, Floats], Floats]:
    return lambda features, weights: function(weights @ features)


def _mean(features: Floats, weights: Floats) -> Floats:
    return _divide((weights @ features)[:, 0], weights.sum(axis=1))


def _ratio(sums: Floats) -> Floats:
    return _divide(sums[:, 0], sums[:, 1])


def _harmonic(sums: Floats) -> Floats:
    first, second = _ratio(sums[:, :2]), _ratio(sums[:, 2:])
    # If one ratio is 0, so is the mean, even where the other is undefined: when no line passes,
    # there is no line whose words could be judged.
    zero = (first == 0) | (second == 0)
    return np.where(zero, 0.0, _divide(2 * first * second, first + second))


def _macro(function: Callable[[Floats], Floats], columns: int) -> Aggregate:
    """The mean of the scores of all groups of columns (languages); NaN if a group is empty."""

    def mean(sums: Floats) -> Floats:
        groups = np.split(sums, sums.shape[1] // columns, axis=1)
        # Not `nanmean`: a language without data makes the score undefined instead of vanishing.
        scores: Floats = np.mean([function(group) for group in groups], axis=0)
        return scores

    return Aggregate(columns, _of_sums(mean), grouped=True)


def _divide(above: Floats, below: Floats) -> Floats:
    """Quotients; NaN where the divisor is 0."""
    quotients = np.full(above.shape, np.nan)
    np.divide(above, below, out=quotients, where=below != 0)
    return quotients


def _quantile(share: float) -> Callable[[Floats, Floats], Floats]:
    """The quantile of all values of the drawn items, interpolated as `numpy.quantile` does."""

    def quantiles(features: Floats, weights: Floats) -> Floats:
        present = ~np.isnan(features)
        # Sorted once for all resamples: drawing an item only changes how often its values count.
        order = np.argsort(features[present], kind="stable")
        values = features[present][order]
        # The number of values in each resample: items may have different numbers of them.
        total = weights @ present.sum(axis=1)
        if not len(values):
            return np.full(len(weights), np.nan)
        # 5 values, share 0.95: position 3.8, between the ranks 3 and 4 and nearer to 4.
        position = (total - 1) * share
        below = np.floor(position)
        ranks = np.stack([below, np.ceil(position)])
        find = _count_up if features.shape[1] < _MANY_VALUES else _bisect
        found = find(np.nonzero(present)[0][order], weights, ranks)
        # A resample without any value finds no index; it becomes NaN below.
        low, high = values[np.minimum(found, len(values) - 1)]
        return np.where(total > 0, low + (high - low) * (position - below), np.nan)

    return quantiles


def _count_up(owners: Indices, weights: Floats, ranks: Floats) -> Indices:
    """Indices of the sorted values that hold the given ranks (from 0) in each resample.

    A value occurs as often as its item was drawn: with owners [0, 1, 0] and weights [[2, 1]], the
    values of one resample are v0 v0 v1 v2 v2, so that rank 2 is index 1. `ranks` and the result
    have the shape [2, resamples].
    """
    reached = np.cumsum(weights[:, owners], axis=1)
    return np.stack([np.count_nonzero(reached <= rank[:, None], axis=1) for rank in ranks])


def _bisect(owners: Indices, weights: Floats, ranks: Floats) -> Indices:
    """The same by bisection, which is faster where items have many values.

    It needs a table of how many values each item has among the first ones, [values + 1, items].
    """
    own = owners[:, None] == np.arange(weights.shape[1])
    counts = np.concatenate([np.zeros((1, weights.shape[1])), np.cumsum(own, axis=0)])
    # Looks for the first index up to which more than `rank` values were counted, as `_count_up`.
    low, high = np.zeros(ranks.shape, dtype=np.int64), np.full(ranks.shape, len(owners))
    while (low < high).any():
        middle = (low + high) // 2
        # [resamples, items] and [2, resamples, items] give [2, resamples]. A search that has ended
        # may point past the last value.
        reached = np.einsum("ri,tri->tr", weights, counts[np.minimum(middle + 1, len(owners))])
        up = (reached <= ranks) & (low < high)
        low, high = np.where(up, middle + 1, low), np.where(up, high, middle)
    return low


def _of_values(share: float) -> Aggregate:
    return Aggregate(None, _quantile(share), quantile=share)


AGGREGATES: Mapping[str, Aggregate] = MappingProxyType(
    {
        "mean": Aggregate(1, _mean),
        "ratio": Aggregate(2, _of_sums(_ratio)),
        "harmonic": Aggregate(4, _of_sums(_harmonic)),
        "macro_ratio": _macro(_ratio, 2),
        "macro_harmonic": _macro(_harmonic, 4),
        "p50": _of_values(0.50),
        "p95": _of_values(0.95),
        "p99": _of_values(0.99),
        # Two lengths, then matches and n-grams of 4 orders.
        "bleu": Aggregate(10, _of_sums(bleu)),
        # 3 counts for each of 6 character orders and 2 word orders.
        "chrf": Aggregate(24, _of_sums(chrf)),
        # The mean over directions, each with columns of its own.
        "macro_bleu": _macro(bleu, 10),
        "macro_chrf": _macro(chrf, 24),
        "exact": Aggregate(1, lambda features, weights: (weights @ features)[:, 0], sampled=False),
    }
)
