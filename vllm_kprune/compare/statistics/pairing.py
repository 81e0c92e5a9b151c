"""The features of a measurement, paired: only items that have a value on every side."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vllm_kprune.compare.measurements import Measurement, Metric
from vllm_kprune.compare.statistics.aggregates import AGGREGATES, Aggregate
from vllm_kprune.compare.statistics.resampling import Effect, bootstrap_replicates, differ

__all__ = ["Paired", "pair", "quantiles"]

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Paired:
    """Features [items, k] of one or both sides, in order of the items' names.

    `dropped` items had no value on a side.
    """

    metric: Metric
    aggregate: Aggregate
    sides: tuple[Floats, ...]
    dropped: int

    @property
    def items(self) -> int:
        return len(self.sides[0])

    @property
    def both(self) -> bool:
        return len(self.sides) == 2

    @property
    def differing(self) -> int:
        """Number of items that have an outcome on both sides, and another on each.

        Of a ratio, only what there is of it: an item with nothing to judge on a side is not one
        that differs, however many of them there are.
        """
        if not self.both:
            return 0
        if self.aggregate.columns not in (2, 4):
            return int(differ(*self.sides).sum())
        return int((np.nan_to_num(self._moves()) != 0).any(axis=1).sum())

    @property
    def varied(self) -> int:
        """Number of items that have an outcome on both sides and do not move the figure as most
        do: that most often stay as they are, or all get worse alike."""
        moves = self._moves()
        judged = np.nan_to_num(moves[~np.isnan(moves).all(axis=1)])
        counts = np.unique(judged, axis=0, return_counts=True)[1]
        return len(judged) - int(max(counts, default=0))

    def _moves(self) -> Floats:
        """Differences of each item's rates, or values, [items, rates]; NaN where a side has none.

        Rounded, so that 3 of 6 is 1 of 2.
        """
        original, pruned = (self._rates(side) for side in self.sides)
        moves: Floats = np.round(pruned - original, 12)
        return moves

    def _rates(self, side: Floats) -> Floats:
        if self.aggregate.columns not in (2, 4):
            return side
        rates = np.full(side[:, ::2].shape, np.nan)
        np.divide(side[:, ::2], side[:, 1::2], out=rates, where=side[:, 1::2] != 0)
        return rates

    @property
    def values(self) -> int:
        """Number of values that a quantile is of, on the side that has fewer."""
        return min(int((~np.isnan(side)).sum()) for side in self.sides)

    @property
    def tested(self) -> bool:
        """Whether a p-value can be had: both sides are samples, and one may be the better."""
        judged = self.both and self.metric.better != "neither"
        return judged and self.aggregate.sampled and self.items > 1

    @property
    def effect(self) -> Effect:
        """The effect of two sides' figures; of one side, the figure itself."""
        return _EFFECTS[self.metric.effect] if self.both else _itself

    def with_effect(self, figures: Floats) -> Floats:
        """Figures [sides, resamples] and, as the last row, their effect."""
        return np.vstack([figures, self.effect(figures[0], figures[-1])])

    def drawn(self, resamples: int, rng: np.random.Generator) -> Floats:
        """Bootstrap replicates of each side and, as the last row, of the effect."""
        return self.with_effect(bootstrap_replicates(self.aggregate, self.sides, resamples, rng))

    def figures(self) -> Floats:
        """The figure of each side, and the effect."""
        every = np.ones((1, self.items))
        drawn = np.stack([self.aggregate.figures(side, every) for side in self.sides])
        one: Floats = self.with_effect(drawn)[:, 0]
        return one


def pair(measurement: Measurement) -> Paired:
    """Check a measurement and drop, on both sides, the items that lack a value on one."""
    metric = measurement.metric
    aggregate = AGGREGATES[metric.aggregate]
    order = np.argsort(np.array(measurement.items, dtype=str), kind="stable")
    given = [measurement.original, measurement.pruned]
    sides = [_checked(measurement, side, aggregate)[order] for side in given if side is not None]
    if len({side.shape[1] for side in sides}) > 1 and aggregate.quantile is None:
        raise ValueError(f"{metric.name}: sides of {[s.shape[1] for s in sides]} features")
    if aggregate.quantile is not None:
        width = max(side.shape[1] for side in sides)
        sides = [_filled(side, width) for side in sides]
    together = np.all if aggregate.columns is None else np.any
    missing = np.any([together(np.isnan(side), axis=1) for side in sides], axis=0)
    kept = tuple(side[~missing] for side in sides)
    return Paired(metric, aggregate, kept, int(missing.sum()))


def quantiles(measurement: Measurement, steps: int = 100) -> tuple[list[float], list[float]] | None:
    """Quantiles of all values of each side, from the least to the largest; None without values."""
    data = pair(measurement)
    if not data.both or not data.items:
        return None
    shares = np.linspace(0, 1, steps + 1)
    first, second = (np.nanquantile(side, shares).tolist() for side in data.sides)
    return first, second


def _checked(measurement: Measurement, side: Floats, aggregate: Aggregate) -> Floats:
    items, name = measurement.items, measurement.metric.name
    if side.ndim != 2 or len(side) != len(items) or not aggregate.fits(side.shape[1]):
        expected = (len(items), aggregate.columns or "any")
        raise ValueError(f"{name}: features {side.shape}, expected {expected}")
    if len(set(items)) != len(items):
        raise ValueError(f"{name}: an item occurs twice")
    if np.isinf(side).any():
        raise ValueError(f"{name}: a feature is infinite")
    return side


def _filled(side: Floats, width: int) -> Floats:
    """The features, filled up with NaN: of a quantile, one side may have more values."""
    return np.pad(side, ((0, 0), (0, width - side.shape[1])), constant_values=np.nan)


def _difference(original: Floats, pruned: Floats) -> Floats:
    return pruned - original


def _log_ratio(original: Floats, pruned: Floats) -> Floats:
    """Ratios are compared as logarithms, where twice and half are equally far from equal."""
    positive = (original > 0) & (pruned > 0)
    ratios = np.full(original.shape, np.nan)
    np.divide(pruned, original, out=ratios, where=positive)
    logarithms: Floats = np.log(ratios)
    return logarithms


def _itself(original: Floats, pruned: Floats) -> Floats:
    return original


_EFFECTS: dict[str, Effect] = {"difference": _difference, "ratio": _log_ratio}
