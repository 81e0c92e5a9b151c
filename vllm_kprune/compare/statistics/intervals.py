"""Confidence intervals of scores and effects, by the paired bootstrap.

The method for each kind of score was chosen by its coverage in simulations of what is compared
here, with 6 to 200 items (`test_interval_coverage.py` repeats some of them):

- Smooth scores: the point estimate plus and minus Student's t times the bootstrap standard error
  (Efron and Tibshirani 1993, chapter 12). It had the best coverage throughout. Percentile and BCa
  intervals, even with wider tails for few items (Hesterberg 2015), miss too often where few items
  differ: with 5 of 60 answers differing, BCa covers 80 % instead of 95 %.
- Shares of items that mostly pass or fail: the same after adding two items, one that passes only on
  the original side and one that passes only on the pruned side (Bonett and Price 2012). A handful
  of differing items says little about how many differ. The effect no longer needs this once a
  dozen items move differently from most. With fewer, the replicates hardly vary: where everything
  differs alike, or where each item that differs has nothing to judge on one side.
- Items that are all alike on both sides: exact. If a share d of all items were worse on one side,
  n items would all be alike with a probability of at most (1 - d) ** n. Any d where that is below
  5 % is rejected: d above 1 - 0.05 ** (1/n), about 3 / n. The same holds for a share that is
  better. A true difference has only one direction, so neither end needs half of the 5 % (Hsu et al.
  1994, on intervals that show that two things are equal). 300 items without a difference give
  +-1.0 percentage points.
  Scores that are not shares: the data do not say how far a differing item would move the score, so
  the interval assumes that as many items lose all of it. It is wide on purpose, since an endless
  loop in place of an answer does lose all of it. A few items that differ make it narrower.
- Quantiles: percentiles of the replicates. There is none where even the largest value may well be
  below the true quantile: p99 needs 368 values at 95 %.

A worked example. 20 items, a share, 95 % confidence: 15 items pass on both sides, 3 on neither,
2 only on the original side. The effect is 15/20 - 17/20 = -0.10. These are shares that pass or
fail, so the two items of Bonett and Price are added: of 22 items, 3 now pass only on the original
side and 1 only on the pruned side, and the centre of the interval moves to (1 - 3) / 22 = -0.091.
The bootstrap standard error of that difference is about sqrt((4/22 - 0.091**2) / 22) = 0.089.
Student's t with 21 degrees of freedom is 2.08, and sqrt(22 / 21) corrects the bootstrap's bias:
the interval reaches 2.13 x 0.089 = 0.19 to each side, so it is [-0.28, +0.10].
"""

from collections.abc import Iterator
from dataclasses import replace
from math import ceil, isfinite, log, nan, pi, sqrt, tan
from statistics import NormalDist

import numpy as np

from vllm_kprune.compare.measurements import Floats
from vllm_kprune.compare.statistics.pairing import Paired

__all__ = ["MIN_ITEMS", "intervals", "rule_of_three", "values_needed"]

Ends = tuple[float, float]

_NORMAL = NormalDist()
_FEW = 12
# Two-sided, 5 items that all point one way give p = 2 / 2**5 = 0.06, and 6 give 0.03.
MIN_ITEMS = 6


def intervals(
    data: Paired, resamples: int, confidence: float, rng: np.random.Generator
) -> list[Ends]:
    """Intervals of each side's score and of the effect (ratios as logarithms); NaN for none.

    Each interval contains its point estimate, and a share stays between 0 and 1. Fewer than
    `MIN_ITEMS` items get none: Student's t would make it too wide to be of any use.
    """
    if data.num_items < MIN_ITEMS:
        return [(nan, nan)] * (len(data.sides) + 1)
    if data.aggregate.quantile is not None:
        found = _percentiles(data, resamples, confidence, rng)
    else:
        found = _standard(data, resamples, confidence, rng)
    points = data.point_estimates()
    # The centre of Bonett and Price is not the point estimate, but the interval contains it anyway.
    # The end comes first in `min` and `max`: in the other order they would lose a NaN.
    held = [
        (min(low, point), max(high, point)) if isfinite(point) else (nan, nan)
        for (low, high), point in zip(found, points.tolist(), strict=True)
    ]
    return [_bounded(data, row, ends) for row, ends in enumerate(held)]


def rule_of_three(items: int, confidence: float) -> float:
    """The largest share of items that may be worse on one side when none of `items` differed.

    About 3 / n at 95 % (Hanley and Lippman-Hand 1983).

    >>> round(rule_of_three(300, 0.95), 4)  # 3 / 300 = 0.01
    0.0099
    """
    return 1 - float((1 - confidence) ** (1 / items))


def values_needed(quantile: float, confidence: float) -> int:
    """How many values an interval of a quantile needs.

    With that many, the largest value lies above the true quantile and the smallest below it with
    enough certainty. All n values lie below the quantile with a probability of `quantile ** n`.

    >>> values_needed(0.99, 0.95)  # 0.99 ** 368 < 0.025
    368
    """
    return ceil(log((1 - confidence) / 2) / log(max(quantile, 1 - quantile)))


def _standard(
    data: Paired, resamples: int, confidence: float, rng: np.random.Generator
) -> list[Ends]:
    found = plain = _around(data, resamples, confidence, rng)
    enlarged = _enlarged(data)
    if enlarged is not data:
        cautious = _around(enlarged, resamples, confidence, rng)
        # The sides always get the cautious interval, the effect only while few items vary.
        many = data.both and data.varied >= _FEW
        found = [*cautious[:-1], plain[-1] if many else cautious[-1]]
    if data.both and data.differing == 0:
        # Not the cautious one. The plain one is wider where items have nothing to judge on one
        # side: these do not count as differing, but they move the scores.
        unseen = _unseen(data, confidence)
        found[-1] = plain[-1] if _width(plain[-1]) > _width(unseen) else unseen
    return found


def _unseen(data: Paired, confidence: float) -> Ends:
    """The interval of an effect where no item differs."""
    point = float(data.point_estimates()[-1])
    parts = list(_groups(data))
    # In the worst case, all the items that were not seen to differ belong to one group (language).
    # A score of 0 has nothing to lose, and the data do not say what it might gain, so that 0
    # becomes NaN, which is no interval.
    reach = max(
        rule_of_three(part.num_items, confidence) * _to_lose(part) / len(parts) for part in parts
    )
    return point - (reach or nan), point + (reach or nan)


def _groups(data: Paired) -> Iterator[Paired]:
    """The data of each group of columns alone, without items that have nothing to judge in it."""
    columns = data.aggregate.columns
    if columns is None or columns == 1:
        yield data
        return
    for start in range(0, data.sides[0].shape[1], columns):
        blocks = [side[:, start : start + columns] for side in data.sides]
        counted = np.all([block.any(axis=1) for block in blocks], axis=0)
        # If no item counts, the score is undefined anyway; one keeps the arithmetic defined.
        chosen = counted if counted.any() else np.arange(len(counted)) == 0
        yield replace(data, sides=tuple(block[chosen] for block in blocks))


def _width(ends: Ends) -> float:
    return ends[1] - ends[0]


def _around(
    data: Paired, resamples: int, confidence: float, rng: np.random.Generator
) -> list[Ends]:
    """Point estimates plus and minus Student's t times the bootstrap standard errors."""
    # One value for each row: the sides, then the effect.
    reach = _reach(data.num_items, confidence) * _spread(data.drawn(resamples, rng))
    centres = data.point_estimates()
    return list(zip((centres - reach).tolist(), (centres + reach).tolist(), strict=True))


def _spread(replicates: Floats) -> Floats:
    """Standard error of each row."""
    return np.array([row.std() if len(row) else nan for row in map(_finite, replicates)])


def _finite(replicates: Floats) -> Floats:
    """The replicates that are defined; none if more than one in ten is not."""
    finite: Floats = replicates[np.isfinite(replicates)]
    return finite if len(finite) >= 0.9 * len(replicates) else finite[:0]


def _reach(items: int, confidence: float) -> float:
    """How many bootstrap standard errors an interval extends to each side.

    The bootstrap divides by n instead of n - 1, so its errors are too small by sqrt((n - 1) / n).
    """
    return sqrt(items / (items - 1)) * _student((1 + confidence) / 2, items - 1)


def _to_lose(data: Paired) -> float:
    """The most that one differing item of n can move the effect, times n.

    That is 1 for a share and on the logarithmic scale, otherwise the whole score.
    """
    if data.metric.effect == "ratio" or data.metric.unit == "share":
        return 1.0
    return abs(float(data.point_estimates()[0]))


def _enlarged(data: Paired) -> Paired:
    """The data with the two items of Bonett and Price, if items mostly pass or fail.

    With mean features [2.5, 5] (5 lines in an item), the two items are [5, 5] against [0, 5] and
    [0, 5] against [5, 5].
    """
    columns = data.aggregate.columns
    if data.metric.unit != "share" or columns not in (1, 2, 4) or not _pass_or_fail(data):
        return data
    sizes = np.concatenate(data.sides).mean(axis=0)
    passed, failed = _whole(columns, sizes), _nothing(columns, sizes)
    extra = [np.stack([passed, failed]), np.stack([failed, passed])]
    if data.both and data.sides[0].tobytes() > data.sides[1].tobytes():
        # Swapping the sides must mirror the effect exactly, so each side gets the same items
        # whichever comes first.
        extra.reverse()
    # A metric of the pair has one side only; `extra` always has two.
    sides = (np.concatenate(pair) for pair in zip(data.sides, extra, strict=False))
    return replace(data, sides=tuple(sides))


def _whole(columns: int, sizes: Floats) -> Floats:
    """Features of an item of average size that passes in everything."""
    return np.ones(1) if columns == 1 else np.repeat(sizes[1::2], 2)


def _nothing(columns: int, sizes: Floats) -> Floats:
    """Features of an item of average size that passes in nothing."""
    item = _whole(columns, sizes).copy()
    item[::2] = 0
    return item


def _pass_or_fail(data: Paired) -> bool:
    """Whether at least half of the items reach either nothing or all they could."""
    features = np.concatenate(data.sides)
    whole = features[:, 1::2] if features.shape[1] > 1 else np.ones((len(features), 1))
    part = features[:, ::2]
    # Items with nothing to judge (0 of 0) would count as extreme, so they are left out.
    extreme = ((part == 0) | (part == whole))[whole != 0]
    return bool(len(extreme) and extreme.mean() >= 0.5)


def _percentiles(
    data: Paired, resamples: int, confidence: float, rng: np.random.Generator
) -> list[Ends]:
    assert data.aggregate.quantile is not None
    if data.num_values < values_needed(data.aggregate.quantile, confidence):
        return [(nan, nan)] * (len(data.sides) + 1)
    # The tails of Student's t, as levels of the normal distribution: for few items they are smaller
    # than (1 - confidence) / 2, so that the percentiles lie further out.
    tail = _NORMAL.cdf(-_reach(data.num_items, confidence))
    rows = map(_finite, data.drawn(resamples, rng))
    ends = [np.quantile(row, [tail, 1 - tail]) if len(row) else (nan, nan) for row in rows]
    return [(float(low), float(high)) for low, high in ends]


def _bounded(data: Paired, row: int, ends: Ends) -> Ends:
    """Shares lie between 0 and 1, and their differences between -1 and 1."""
    is_effect = data.both and row == len(data.sides)
    if data.metric.unit != "share" or (is_effect and data.metric.effect == "ratio"):
        return ends
    return max(ends[0], -1.0 if is_effect else 0.0), min(ends[1], 1.0)


def _student(share: float, freedom: int) -> float:
    """Quantile of Student's t from the normal quantile (Abramowitz and Stegun 26.7.5).

    Exact for one and two degrees of freedom, within 1 % elsewhere at the usual levels.
    """
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
