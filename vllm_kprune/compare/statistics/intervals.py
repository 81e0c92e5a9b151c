"""Confidence intervals of figures and effects, by the paired bootstrap.

Which interval was decided by its coverage in simulations of what is compared here, 6 to 200 items
(test_interval_coverage.py holds a part of them):

- Smooth figures: the point, plus and minus Student's t times the bootstrap standard error (Efron
  and Tibshirani 1993, chapter 12). It covered best throughout; percentile and BCa intervals, also
  with tails moved out for few items (Hesterberg 2015), miss where few items differ: 5 of 60
  differing answers leave BCa with a coverage of 0.80.
- Shares of items that mostly pass or fail: the same after two items are added, one that passes on
  the original side alone and one on the pruned side alone (Bonett and Price 2012), since a
  handful of differing items tells little of how many differ, and none at all nothing. From a
  dozen items on that do not move as most do, the effect needs this no longer. Fewer, and draws
  hardly spread: where nothing differs, where all differs alike, where all that differs has nothing
  to judge on a side.
- Figures that are not shares, of items that are all alike on both sides: nothing tells how far an
  item would move the figure that does differ, so the interval supposes the worst, that it loses
  all that the figure has, of as many items as `rule_of_three` allows. It is wide on purpose (an
  endless loop in place of an answer does lose all); items that differ, once there are some, narrow
  it.
- Quantiles: percentiles of the replicates, and none where even the largest value may well lie
  below the true quantile: p99 needs 368 values at 95 %.
"""

from dataclasses import replace
from math import ceil, isfinite, log, nan, pi, sqrt, tan
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from vllm_kprune.compare.statistics.pairing import Paired

__all__ = ["MIN_ITEMS", "intervals", "rule_of_three", "values_needed"]

Floats = NDArray[np.float64]
Ends = tuple[float, float]

_NORMAL = NormalDist()
_FEW = 12
MIN_ITEMS = 6


def intervals(
    data: Paired, resamples: int, confidence: float, rng: np.random.Generator
) -> list[Ends]:
    """Intervals of each side's figure and of the effect (ratios as logarithms); NaN for none.

    Each holds its point, and a share stays between 0 and 1. None of fewer than `MIN_ITEMS` items:
    Student's t makes it so wide that it tells nothing, and a chart of it even less.
    """
    if data.items < MIN_ITEMS:
        return [(nan, nan)] * (len(data.sides) + 1)
    if data.aggregate.quantile is not None:
        found = _percentiles(data, resamples, confidence, rng)
    else:
        found = _standard(data, resamples, confidence, rng)
    points = data.figures()
    held = [
        (min(low, point), max(high, point)) if isfinite(point) else (nan, nan)
        for (low, high), point in zip(found, points.tolist(), strict=True)
    ]
    return [_bounded(data, row, ends) for row, ends in enumerate(held)]


def rule_of_three(items: int, confidence: float) -> float:
    """The largest share of items that may differ when none of `items` did.

    The upper end of the exact interval for a share: about 3.7 / n at 95 % (Hanley and
    Lippman-Hand 1983, who name the one-sided form, 3 / n).
    """
    return 1 - float(((1 - confidence) / 2) ** (1 / items))


def values_needed(quantile: float, confidence: float) -> int:
    """How many values it takes for the largest to lie above the true quantile, and the least
    below it, surely enough for an interval to have two ends."""
    return ceil(log((1 - confidence) / 2) / log(max(quantile, 1 - quantile)))


def _standard(
    data: Paired, resamples: int, confidence: float, rng: np.random.Generator
) -> list[Ends]:
    found = _around(data, resamples, confidence, rng)
    enlarged = _enlarged(data)
    if enlarged is not data:
        cautious = _around(enlarged, resamples, confidence, rng)
        plain = data.both and data.varied >= _FEW
        found = [*cautious[:-1], found[-1] if plain else cautious[-1]]
    elif data.both and data.differing == 0:
        point = float(data.figures()[-1])
        # Where the figure has nothing to lose, the data tell nothing of what it might gain.
        reach = rule_of_three(data.items, confidence) * _to_lose(data) or nan
        unseen = point - reach, point + reach
        found[-1] = found[-1] if _width(found[-1]) > _width(unseen) else unseen
    return found


def _width(ends: Ends) -> float:
    return ends[1] - ends[0]


def _around(
    data: Paired, resamples: int, confidence: float, rng: np.random.Generator
) -> list[Ends]:
    """The figures plus and minus what Student's t makes of the bootstrap standard errors."""
    reach = _reach(data.items, confidence) * _spread(data.drawn(resamples, rng))
    centres = data.figures()
    return list(zip((centres - reach).tolist(), (centres + reach).tolist(), strict=True))


def _spread(replicates: Floats) -> Floats:
    """Standard error of each row."""
    return np.array([row.std() if len(row) else nan for row in map(_finite, replicates)])


def _finite(replicates: Floats) -> Floats:
    """The replicates that could be worked out; none if one in ten could not."""
    finite: Floats = replicates[np.isfinite(replicates)]
    return finite if len(finite) >= 0.9 * len(replicates) else finite[:0]


def _reach(items: int, confidence: float) -> float:
    """How many bootstrap standard errors the interval reaches; the bootstrap's own are too small
    by sqrt((n - 1) / n)."""
    return sqrt(items / (items - 1)) * _student((1 + confidence) / 2, items - 1)


def _to_lose(data: Paired) -> float:
    """What an item that differs, unseen so far, can move the effect at most, times n: 1 for a
    share and on the log scale, otherwise all that the figure has."""
    if data.metric.effect == "ratio" or data.metric.unit == "share":
        return 1.0
    return abs(float(data.figures()[0]))


def _enlarged(data: Paired) -> Paired:
    """With the two items of Bonett and Price, if items mostly pass or fail."""
    columns = data.aggregate.columns
    if data.metric.unit != "share" or columns not in (1, 2, 4) or not _pass_or_fail(data):
        return data
    sizes = np.concatenate(data.sides).mean(axis=0)
    passed, failed = _whole(columns, sizes), _nothing(columns, sizes)
    extra = [np.stack([passed, failed]), np.stack([failed, passed])]
    if data.both and data.sides[0].tobytes() > data.sides[1].tobytes():
        # Each side gets the same items whichever comes first: swapping them mirrors the effect.
        extra.reverse()
    sides = (np.concatenate(pair) for pair in zip(data.sides, extra, strict=False))
    return replace(data, sides=tuple(sides))


def _whole(columns: int, sizes: Floats) -> Floats:
    """Features of an item of the usual size that passes in all it has."""
    return np.ones(1) if columns == 1 else np.repeat(sizes[1::2], 2)


def _nothing(columns: int, sizes: Floats) -> Floats:
    """Features of an item of the usual size that passes in nothing."""
    item = _whole(columns, sizes).copy()
    item[::2] = 0
    return item


def _pass_or_fail(data: Paired) -> bool:
    """Whether at least half of the items have none or all of what they can have."""
    features = np.concatenate(data.sides)
    whole = features[:, 1::2] if features.shape[1] > 1 else np.ones((len(features), 1))
    part = features[:, ::2]
    extreme = ((part == 0) | (part == whole))[whole != 0]
    return bool(len(extreme) and extreme.mean() >= 0.5)


def _percentiles(
    data: Paired, resamples: int, confidence: float, rng: np.random.Generator
) -> list[Ends]:
    assert data.aggregate.quantile is not None
    if data.values < values_needed(data.aggregate.quantile, confidence):
        return [(nan, nan)] * (len(data.sides) + 1)
    tail = _NORMAL.cdf(-_reach(data.items, confidence))
    rows = map(_finite, data.drawn(resamples, rng))
    ends = [np.quantile(row, [tail, 1 - tail]) if len(row) else (nan, nan) for row in rows]
    return [(float(low), float(high)) for low, high in ends]


def _bounded(data: Paired, row: int, ends: Ends) -> Ends:
    """Shares are between 0 and 1, and their differences between -1 and 1."""
    is_effect = data.both and row == len(data.sides)
    if data.metric.unit != "share" or (is_effect and data.metric.effect == "ratio"):
        return ends
    return max(ends[0], -1.0 if is_effect else 0.0), min(ends[1], 1.0)


def _student(share: float, freedom: int) -> float:
    """Quantile of Student's t, from the normal one: Abramowitz and Stegun 26.7.5; exact for one
    and two degrees of freedom, elsewhere within 1 % for usual levels."""
    if freedom == 1:
        return tan(pi * (share - 0.5))
    if freedom == 2:
        return (2 * share - 1) * sqrt(2 / (4 * share * (1 - share)))
    z = _NORMAL.inv_cdf(share)
    return (
        z
        + (z**3 + z) / (4 * freedom)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * freedom**3)
    )
