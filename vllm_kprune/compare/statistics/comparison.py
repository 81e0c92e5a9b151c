"""From a measurement to a comparison: scores, effect, interval and p-value.

The unit is the item, drawn together with both its sides; see `resampling.py` and `intervals.py`.
"""

import zlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from math import exp, isfinite, nan

import numpy as np

from vllm_kprune.compare.measurements import Measurement, Metric
from vllm_kprune.compare.statistics.intervals import intervals
from vllm_kprune.compare.statistics.pairing import Paired, pair
from vllm_kprune.compare.statistics.resampling import permutation_test

__all__ = ["Comparison", "Estimate", "compare", "correct"]


@dataclass(frozen=True)
class Estimate:
    """A score or an effect with its interval; None where the data do not determine it."""

    value: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Comparison:
    """A metric on both sides.

    `effect` is pruned - original or pruned / original, as the metric says. For a metric of the pair
    itself it is that score, and `pruned` is None. `n` items have a value on both sides, `dropped`
    items lack one, and `differing` items have different outcomes on the two sides. `num_values`
    counts the values that a quantile is taken from. `p` is None where nothing is tested, and
    `correct` sets `p_adjusted`.
    """

    metric: Metric
    n: int
    num_values: int
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
    """Compare the two sides; the result depends on the arguments alone, not on the item order."""
    data = pair(measurement)
    # Each metric has its own stream, whatever else is compared. `hash` of a text would differ from
    # process to process.
    rng = np.random.default_rng([seed, zlib.crc32(data.metric.name.encode())])
    estimates = _estimates(data, resamples, confidence, rng)
    # Where the items are too few for an interval, there is no p-value either.
    tested = data.tested and estimates[-1].low is not None
    return Comparison(
        metric=data.metric,
        n=data.num_items,
        num_values=data.num_values,
        dropped=data.dropped,
        differing=data.differing,
        confidence=confidence,
        original=estimates[0],
        pruned=estimates[1] if data.both else None,
        effect=estimates[-1],
        p=_p_value(data, resamples, rng) if tested else None,
    )


def correct(comparisons: Iterable[Comparison]) -> tuple[Comparison, ...]:
    """Set `p_adjusted` by Holm's method (1979) over all comparisons that were tested.

    The smallest of m p-values is multiplied by m, the next by m - 1, and so on, and none may fall
    below the one before: 0.01, 0.04 and 0.03 become 0.03, 0.06 and 0.06.
    """
    found = list(comparisons)
    # With the position, which orders equal p-values, so that the result is always the same.
    tested = sorted((c.p, at) for at, c in enumerate(found) if c.p is not None)
    floor = 0.0
    for rank, (p, at) in enumerate(tested):
        floor = max(floor, min(1.0, p * (len(tested) - rank)))
        found[at] = replace(found[at], p_adjusted=floor)
    return tuple(found)


def _p_value(data: Paired, resamples: int, rng: np.random.Generator) -> float:
    return permutation_test(
        data.aggregate, (data.sides[0], data.sides[1]), data.effect, resamples, rng
    )


def _estimates(
    data: Paired, resamples: int, confidence: float, rng: np.random.Generator
) -> list[Estimate]:
    """The estimates of each side, then of the effect."""
    points = data.point_estimates().tolist() if data.num_items else [nan] * (len(data.sides) + 1)
    if not data.aggregate.sampled:
        rows = [(point, point, point) for point in points]
    else:
        ends = intervals(data, resamples, confidence, rng)
        rows = [(point, *pair) for point, pair in zip(points, ends, strict=True)]
    if data.metric.effect == "ratio" and data.both:
        # Effects of ratios are computed as logarithms (`pairing`).
        value, low, high = rows[-1]
        rows[-1] = exp(value), exp(low), exp(high)
    return [Estimate(*(_or_none(number) for number in row)) for row in rows]


def _or_none(number: float) -> float | None:
    return float(number) if isfinite(number) else None
