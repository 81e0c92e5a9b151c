"""How the features of items become one figure: the table `AGGREGATES`.

Each row is a function of features [items, k] and weights [resamples, items] (how often an item
was drawn: whole numbers) that gives a figure for each resample; so intervals and tests need to
know nothing of the figure.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from vllm_kprune.compare.statistics.corpus_scores import bleu, chrf

__all__ = ["AGGREGATES", "Aggregate"]

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

# From so many values of an item on, halving is quicker than counting up.
_LONG = 8


@dataclass(frozen=True)
class Aggregate:
    """One way to sum items up.

    `columns` is the number of features of an item (None: any; a short item is filled up with NaN),
    or of each of its groups, as many as there are, where `grouped`. `quantile` is the share of
    values below, for a quantile. `sampled` is False for what is counted, not sampled.
    """

    columns: int | None
    figures: Callable[[Floats, Floats], Floats]
    quantile: float | None = None
    sampled: bool = True
    grouped: bool = False

    def fits(self, width: int) -> bool:
        """Whether items may have so many features."""
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
    # A share of nothing is nothing, also where that leaves the other one undefined.
    nothing = (first == 0) | (second == 0)
    return np.where(nothing, 0.0, _divide(2 * first * second, first + second))


def _macro(function: Callable[[Floats], Floats], columns: int) -> Aggregate:
    """The mean of a figure of every group of columns (a language); NaN if a group is empty."""

    def mean(sums: Floats) -> Floats:
        groups = np.split(sums, sums.shape[1] // columns, axis=1)
        figures: Floats = np.mean([function(group) for group in groups], axis=0)
        return figures

    return Aggregate(columns, _of_sums(mean), grouped=True)


def _divide(above: Floats, below: Floats) -> Floats:
    """Quotients, NaN where there is nothing to divide by."""
    quotients = np.full(above.shape, np.nan)
    np.divide(above, below, out=quotients, where=below != 0)
    return quotients


def _quantile(share: float) -> Callable[[Floats, Floats], Floats]:
    """The quantile of all values of the drawn items, interpolated as `numpy.quantile` does."""

    def figures(features: Floats, weights: Floats) -> Floats:
        present = ~np.isnan(features)
        order = np.argsort(features[present], kind="stable")
        values = features[present][order]
        total = weights @ present.sum(axis=1)
        if not len(values):
            return np.full(len(weights), np.nan)
        position = (total - 1) * share
        below = np.floor(position)
        ranks = np.stack([below, np.ceil(position)])
        find = _count_up if features.shape[1] < _LONG else _bisect
        found = find(np.nonzero(present)[0][order], weights, ranks)
        low, high = values[np.minimum(found, len(values) - 1)]
        return np.where(total > 0, low + (high - low) * (position - below), np.nan)

    return figures


def _count_up(owners: Integers, weights: Floats, ranks: Floats) -> Integers:
    """Which sorted value is at a rank (from 0) of each resample, where each value stands there as
    often as the item that owns it was drawn; ranks [2, resamples]."""
    reached = np.cumsum(weights[:, owners], axis=1)
    return np.stack([np.count_nonzero(reached <= rank[:, None], axis=1) for rank in ranks])


def _bisect(owners: Integers, weights: Floats, ranks: Floats) -> Integers:
    """The same, quicker where items have many values each: by halving, with a table of how many
    of its values each item has among the first, [values + 1, items]."""
    own = owners[:, None] == np.arange(weights.shape[1])
    counts = np.concatenate([np.zeros((1, weights.shape[1])), np.cumsum(own, axis=0)])
    low, high = np.zeros(ranks.shape, dtype=np.int64), np.full(ranks.shape, len(owners))
    while (low < high).any():
        middle = (low + high) // 2
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
        "bleu": Aggregate(10, _of_sums(bleu)),
        "chrf": Aggregate(24, _of_sums(chrf)),
        "exact": Aggregate(1, lambda features, weights: (weights @ features)[:, 0], sampled=False),
    }
)
