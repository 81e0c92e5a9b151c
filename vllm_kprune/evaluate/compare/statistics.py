"""From a measurement to a comparison: figures, effect, interval and p-value.

The unit is the item, drawn with both its sides (see `resampling.py`). How well the intervals
cover, and how often equal sides are called different, is tested by simulation.
"""

import zlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from math import exp, isfinite, nan

import numpy as np
from numpy.typing import NDArray

from vllm_kprune.evaluate.compare.pairing import Paired, pair
from vllm_kprune.evaluate.compare.resampling import (
    bootstrap_replicates,
    interval,
    jackknife,
    swap_test,
)
from vllm_kprune.evaluate.compare.values import Measurement, Metric

__all__ = ["Comparison", "Estimate", "compare", "correct", "rule_of_three"]

Floats = NDArray[np.float64]
_Row = tuple[float, float, float]


@dataclass(frozen=True)
class Estimate:
    """A figure with its interval; None for what the data cannot tell."""

    value: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Comparison:
    """A metric on both sides.

    `effect` is pruned - original, or pruned / original, as the metric says; for a metric of the
    pair itself it is that figure, and `pruned` is None. `dropped` items had no value on a side;
    `differing` items have other features on the two sides. `p` is None where nothing is tested;
    `p_adjusted` is set by `correct`.
    """

    metric: Metric
    n: int
    dropped: int
    differing: int
    confidence: float
    original: Estimate
    pruned: Estimate | None
    effect: Estimate
    p: float | None
    p_adjusted: float | None = None


def compare(
    measurement: Measurement, *, seed: int, resamples: int = 10_000, confidence: float = 0.95
) -> Comparison:
    """Compare the two sides; depends on nothing but the arguments, nor on the order of items."""
    data = pair(measurement)
    rng = np.random.default_rng([seed, zlib.crc32(data.metric.name.encode())])
    estimates = _estimates(data, resamples, confidence, rng)
    tested = data.tested and estimates[-1].value is not None
    return Comparison(
        metric=data.metric,
        n=data.items,
        dropped=data.dropped,
        differing=data.differing,
        confidence=confidence,
        original=estimates[0],
        pruned=estimates[1] if data.both else None,
        effect=estimates[-1],
        p=_p_value(data, resamples, rng) if tested else None,
    )


def correct(comparisons: Iterable[Comparison]) -> tuple[Comparison, ...]:
    """Set `p_adjusted` by Holm's method (1979) over all that were tested: p-values of 0.01, 0.04
    and 0.03 become 0.03, 0.06 and 0.06."""
    found = list(comparisons)
    tested = sorted((c.p, at) for at, c in enumerate(found) if c.p is not None)
    floor = 0.0
    for rank, (p, at) in enumerate(tested):
        floor = max(floor, min(1.0, p * (len(tested) - rank)))
        found[at] = replace(found[at], p_adjusted=floor)
    return tuple(found)


def rule_of_three(items: int, confidence: float) -> float:
    """The largest share of items that may differ when none of `items` did.

    The upper end of the exact interval for a share: about 3.7 / n at 95 % (Hanley and
    Lippman-Hand 1983, who name the one-sided form, 3 / n).
    """
    return 1 - ((1 - confidence) / 2) ** (1 / items) if items else 1.0


def _p_value(data: Paired, resamples: int, rng: np.random.Generator) -> float:
    return swap_test(data.aggregate, (data.sides[0], data.sides[1]), data.effect, resamples, rng)


def _estimates(
    data: Paired, resamples: int, confidence: float, rng: np.random.Generator
) -> list[Estimate]:
    """Of each side, then of the effect."""
    points = data.figures() if data.items else [nan] * (len(data.sides) + 1)
    if not data.aggregate.sampled:
        rows = [(point, point, point) for point in points]
    elif data.items < 2:
        rows = [(point, nan, nan) for point in points]
    else:
        rows = _sampled(data, np.asarray(points), resamples, confidence, rng)
    if data.metric.effect == "ratio" and data.both:
        value, low, high = rows[-1]
        rows[-1] = exp(value), exp(low), exp(high)
    return [Estimate(*(_or_none(number) for number in row)) for row in rows]


def _sampled(
    data: Paired, points: Floats, resamples: int, confidence: float, rng: np.random.Generator
) -> list[_Row]:
    drawn = bootstrap_replicates(data.aggregate, data.sides, resamples, rng)
    replicates = data.with_effect(drawn)
    left_out = None
    if data.aggregate.smooth:
        left_out = data.with_effect(jackknife(data.aggregate, data.sides))
    unseen = rule_of_three(data.items, confidence)
    rows: list[_Row] = []
    for at, (point, scale) in enumerate(zip(points, _scales(data, points), strict=True)):
        without = None if left_out is None else left_out[at]
        low, high = interval(replicates[at], point, without, data.items, confidence)
        if np.ptp(replicates[at]) == 0:
            low, high = low - unseen * scale, high + unseen * scale
        rows.append((point, low, high))
    return _within_bounds(data, rows)


def _scales(data: Paired, points: Floats) -> list[float]:
    """By how much one item that differs can move each figure and the effect, times n.

    An interval may not shrink to a point because all items seen are alike: a share of items up to
    `rule_of_three` may still differ, each by all that it has to lose. That is 1 for a share and on
    the log scale, and for a difference in another unit the figure itself.
    """
    share = float(data.metric.unit == "share")
    if not data.both:
        return [share, share]
    whole = 1.0 if data.metric.effect == "ratio" or share else abs(points[0])
    return [share, share, whole]


def _within_bounds(data: Paired, rows: list[_Row]) -> list[_Row]:
    """Shares are between 0 and 1, and their differences between -1 and 1."""
    if data.metric.unit != "share":
        return rows
    least = [0.0] * len(data.sides) + [-1.0 if data.both else 0.0]
    bounded = not (data.both and data.metric.effect == "ratio")
    return [
        (value, max(low, floor), min(high, 1.0)) if bounded or floor == 0 else (value, low, high)
        for (value, low, high), floor in zip(rows, least, strict=True)
    ]


def _or_none(number: float) -> float | None:
    return float(number) if isfinite(number) else None
