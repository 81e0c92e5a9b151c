"""The features of a measurement, paired: only items that have a value on both sides."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vllm_kprune.compare.measurements import Floats, Measurement, Metric
from vllm_kprune.compare.statistics.aggregates import AGGREGATES, Aggregate
from vllm_kprune.compare.statistics.resampling import Effect, bootstrap_replicates, differ

__all__ = ["Paired", "pair", "quantiles"]


@dataclass(frozen=True)
class Paired:
    """Features [items, k] of one or both sides, in the order of the items' names.

    `dropped` counts the items that had no value on one side.
    """

    metric: Metric
    aggregate: Aggregate
    sides: tuple[Floats, ...]
    dropped: int

    @property
    def num_items(self) -> int:
        return len(self.sides[0])

    @property
    def both(self) -> bool:
        return len(self.sides) == 2

    @property
    def differing(self) -> int:
        """Number of items whose outcome differs between the sides.

        For a ratio, an item with nothing to judge on one side does not count as differing.
        """
        if not self.both:
            return 0
        if self.aggregate.columns not in (2, 4):
            return int(differ(*self.sides).sum())
        return int((np.nan_to_num(self._moves()) != 0).any(axis=1).sum())

    @property
    def varied(self) -> int:
        """Number of items whose change is not the most frequent one.

        Most often the frequent change is none at all. Items without an outcome on one side do not
        count. Changes of [0, 0, 0, -1, +1] give 2; changes of [-1, -1, -1] give 0.
        """
        moves = self._moves()
        judged = np.nan_to_num(moves[~np.isnan(moves).all(axis=1)])
        counts = np.unique(judged, axis=0, return_counts=True)[1]
        return len(judged) - int(max(counts, default=0))

    def _moves(self) -> Floats:
        """Change of each item's rates or values, [items, rates]; NaN where a side has none.

        Rounded, so that 3 of 6 equals 1 of 2.
        """
        original, pruned = (self._rates(side) for side in self.sides)
        moves: Floats = np.round(pruned - original, 12)
        return moves

    def _rates(self, side: Floats) -> Floats:
        if self.aggregate.columns not in (2, 4):
            return side
        # Columns [a, b, c, d] give [a / b, c / d].
        rates = np.full(side[:, ::2].shape, np.nan)
        np.divide(side[:, ::2], side[:, 1::2], out=rates, where=side[:, 1::2] != 0)
        return rates

    @property
    def num_values(self) -> int:
        """Number of values that a quantile is taken from, on the side that has fewer."""
        return min(int((~np.isnan(side)).sum()) for side in self.sides)

    @property
    def tested(self) -> bool:
        """Whether a p-value makes sense: both sides are samples, and one can be better."""
        # A metric without a better side would only make Holm's correction stricter for the others.
        judged = self.both and self.metric.better != "neither"
        return judged and self.aggregate.sampled and self.num_items > 1

    @property
    def effect(self) -> Effect:
        """The effect of two sides' scores; with one side, the score itself."""
        return _EFFECTS[self.metric.effect] if self.both else _itself

    def with_effect(self, scores: Floats) -> Floats:
        """Scores [sides, resamples] and, as the last row, their effect."""
        # With one side, both are the same row, and `_itself` returns it.
        return np.vstack([scores, self.effect(scores[0], scores[-1])])

    def drawn(self, resamples: int, rng: np.random.Generator) -> Floats:
        """Bootstrap replicates of each side and, as the last row, of the effect."""
        return self.with_effect(bootstrap_replicates(self.aggregate, self.sides, resamples, rng))

    def point_estimates(self) -> Floats:
        """The score of each side, and the effect."""
        once = np.ones((1, self.num_items))
        scores = np.stack([self.aggregate.compute(side, once) for side in self.sides])
        points: Floats = self.with_effect(scores)[:, 0]
        return points


def pair(measurement: Measurement) -> Paired:
    """Check a measurement, and drop items that lack a value on one side from both sides.

    Items with nothing to judge on either side are not counted at all: the words of Korean answers
    are not judged in English ones, and 0 of 0 changes no ratio.
    """
    metric = measurement.metric
    aggregate = AGGREGATES[metric.aggregate]
    # By name: the order in which a suite lists its items must not change what is drawn.
    order = np.argsort(np.array(measurement.items, dtype=str), kind="stable")
    given = [measurement.original, measurement.pruned]
    sides = [_checked(measurement, side, aggregate)[order] for side in given if side is not None]
    if len({side.shape[1] for side in sides}) > 1 and aggregate.quantile is None:
        raise ValueError(
            f"{metric.name}: the sides have {[s.shape[1] for s in sides]} features, expected equal"
        )
    if aggregate.quantile is not None:
        width = max(side.shape[1] for side in sides)
        sides = [_filled(side, width) for side in sides]
    # For a quantile, NaN is padding, and an item is missing only if it has no value at all.
    together = np.all if aggregate.columns is None else np.any
    missing = np.any([together(np.isnan(side), axis=1) for side in sides], axis=0)
    idle = _nothing_to_judge(sides) if aggregate.columns in (2, 4) else np.zeros(len(missing), bool)
    kept = tuple(side[~missing & ~idle] for side in sides)
    return Paired(metric, aggregate, kept, int(missing.sum()))


def _nothing_to_judge(sides: Sequence[Floats]) -> NDArray[np.bool_]:
    idle: NDArray[np.bool_] = np.all([(side == 0).all(axis=1) for side in sides], axis=0)
    return idle


def quantiles(measurement: Measurement, steps: int = 100) -> tuple[list[float], list[float]] | None:
    """Quantiles of all values of each side, from the smallest to the largest.

    None if the measurement has one side only, or no items.
    """
    data = pair(measurement)
    if not data.both or not data.num_items:
        return None
    shares = np.linspace(0, 1, steps + 1)
    # `nan`: shorter rows are padded.
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
    """The features padded with NaN, as one side may have more values for a quantile."""
    return np.pad(side, ((0, 0), (0, width - side.shape[1])), constant_values=np.nan)


def _difference(original: Floats, pruned: Floats) -> Floats:
    return pruned - original


def _log_ratio(original: Floats, pruned: Floats) -> Floats:
    """Ratios are compared as logarithms, where double and half are equally far from equal."""
    positive = (original > 0) & (pruned > 0)
    ratios = np.full(original.shape, np.nan)
    np.divide(pruned, original, out=ratios, where=positive)
    logarithms: Floats = np.log(ratios)
    return logarithms


def _itself(original: Floats, pruned: Floats) -> Floats:
    return original


_EFFECTS: dict[str, Effect] = {"difference": _difference, "ratio": _log_ratio}
