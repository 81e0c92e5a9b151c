"""Intervals by the paired bootstrap, and p-values by swapping the sides of whole items.

Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993): chapter 14.3 (BCa), 15
(permutation tests). Both sides of an item are drawn together, so that what makes an item hard
cancels out. Memory is bounded: resamples are made in blocks.
"""

from collections.abc import Callable, Iterator
from itertools import product
from math import nan, sqrt
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from vllm_kprune.evaluate.compare.aggregates import Aggregate

__all__ = ["Effect", "bootstrap_replicates", "differ", "interval", "jackknife", "swap_test"]

Floats = NDArray[np.float64]
Effect = Callable[[Floats, Floats], Floats]
"""The effect from figures of the original and of the pruned side, [resamples] each."""

# 32 MB of float64 for each of the few arrays that a block needs.
_BLOCK_CELLS = 1 << 22
_EXACT_ITEMS = 13
_NORMAL = NormalDist()


def bootstrap_replicates(
    aggregate: Aggregate, sides: tuple[Floats, ...], resamples: int, rng: np.random.Generator
) -> Floats:
    """Figures of each side over `resamples` draws of the items, [sides, resamples]."""
    items = len(sides[0])
    blocks = []
    for rows in _blocks(resamples, sides):
        drawn = rng.integers(0, items, size=(rows, items)) + items * np.arange(rows)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=rows * items)
        weights = counts.reshape(rows, items).astype(np.float64)
        blocks.append(np.stack([aggregate.figures(side, weights) for side in sides]))
    return np.concatenate(blocks, axis=1)


def jackknife(aggregate: Aggregate, sides: tuple[Floats, ...]) -> Floats:
    """Figures of each side without one item, for each item in turn, [sides, items]."""
    items = len(sides[0])
    blocks = []
    start = 0
    for rows in _blocks(items, sides):
        weights = np.ones((rows, items))
        weights[np.arange(rows), start + np.arange(rows)] = 0
        blocks.append(np.stack([aggregate.figures(side, weights) for side in sides]))
        start += rows
    return np.concatenate(blocks, axis=1)


def _blocks(rows: int, sides: tuple[Floats, ...]) -> Iterator[int]:
    """Numbers of rows that add up to `rows`, each small enough."""
    most = max(1, _BLOCK_CELLS // max(1, max(side.size for side in sides)))
    while rows > 0:
        yield min(rows, most)
        rows -= most


def interval(
    replicates: Floats, point: float, left_out: Floats | None, items: int, confidence: float
) -> tuple[float, float]:
    """The confidence interval of a figure, which always holds `point`; NaN for too little data.

    BCa where the jackknife figures `left_out` are given, percentile otherwise; both with tails
    moved out for few items (Hesterberg 2015, "What Teachers Should Know about the Bootstrap",
    section 5.2), because the plain ones are too narrow by a factor sqrt((n - 1) / n) and take
    normal for t quantiles.
    """
    replicates = replicates[np.isfinite(replicates)]
    if items < 2 or not len(replicates):
        return nan, nan
    tail = sqrt(items / (items - 1)) * _student((1 + confidence) / 2, items - 1)
    shares = [_NORMAL.cdf(sign * tail) for sign in (-1, 1)]
    if left_out is not None:
        bias, acceleration = _bias(replicates, point), _acceleration(left_out)
        shares = [_adjust(sign * tail, bias, acceleration) for sign in (-1, 1)]
    low, high = np.quantile(replicates, shares)
    return min(float(low), point), max(float(high), point)


def _bias(replicates: Floats, point: float) -> float:
    """z0: the normal quantile of the share of replicates below the point (half of the ties)."""
    slack = 1e-12 * abs(point)
    below = np.count_nonzero(replicates < point - slack)
    level = np.count_nonzero(replicates <= point + slack) - below
    share = (below + level / 2) / len(replicates)
    edge = 0.5 / len(replicates)
    return _NORMAL.inv_cdf(min(max(share, edge), 1 - edge))


def _acceleration(left_out: Floats) -> float:
    """Efron and Tibshirani 1993, equation 14.15."""
    left_out = left_out[np.isfinite(left_out)]
    deviation = left_out.mean() - left_out if len(left_out) else left_out
    spread = float((deviation**2).sum())
    return float((deviation**3).sum()) / (6 * spread**1.5) if spread > 0 else 0.0


def _adjust(z: float, bias: float, acceleration: float) -> float:
    """Efron and Tibshirani 1993, equation 14.10; never past where its denominator turns."""
    moved = bias + z
    return _NORMAL.cdf(bias + moved / max(1 - acceleration * moved, 0.1))


def _student(share: float, freedom: int) -> float:
    """Quantile of Student's t, from the normal one: Abramowitz and Stegun 26.7.5; exact for one
    and two degrees of freedom, elsewhere within 1 % for usual levels."""
    if freedom == 1:
        return float(np.tan(np.pi * (share - 0.5)))
    if freedom == 2:
        return (2 * share - 1) * sqrt(2 / (4 * share * (1 - share)))
    z = _NORMAL.inv_cdf(share)
    return (
        z
        + (z**3 + z) / (4 * freedom)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * freedom**3)
    )


def swap_test(
    aggregate: Aggregate,
    sides: tuple[Floats, Floats],
    effect: Effect,
    resamples: int,
    rng: np.random.Generator,
) -> float:
    """Two-sided p-value of no difference: how often an effect at least as large comes about when
    the two sides of each item are swapped at random.

    For a mean this is the sign-flip test. All swaps are tried where at most 13 items differ;
    otherwise the observed arrangement counts as one of those drawn (Phipson and Smyth 2010), so
    that the p-value is never 0.
    """
    original, pruned = sides
    items = len(original)
    unequal = np.nonzero(differ(original, pruned))[0]
    if not len(unequal):
        return 1.0
    stacked = np.concatenate([original, pruned])
    observed = abs(_swapped(aggregate, stacked, effect, np.zeros((1, items)))[0])
    least = observed * (1 - 1e-9)
    exact = len(unequal) <= _EXACT_ITEMS
    larger = tried = 0
    for chosen in _swaps(len(unequal), resamples, rng, stacked):
        masks = np.zeros((len(chosen), items))
        masks[:, unequal] = chosen
        effects = np.abs(_swapped(aggregate, stacked, effect, masks))
        # What cannot be worked out counts against a difference.
        larger += int(np.count_nonzero(~(effects < least)))
        tried += len(chosen)
    return larger / tried if exact else (larger + 1) / (tried + 1)


def differ(original: Floats, pruned: Floats) -> NDArray[np.bool_]:
    """Which items differ in any feature; padding equals padding."""
    same = (original == pruned) | (np.isnan(original) & np.isnan(pruned))
    different: NDArray[np.bool_] = ~same.all(axis=1)
    return different


def _swaps(
    items: int, resamples: int, rng: np.random.Generator, stacked: Floats
) -> Iterator[NDArray[np.int8]]:
    """Which items to swap, in blocks [rows, items]: all ways, or random ones."""
    if items <= _EXACT_ITEMS:
        every = np.array(list(product((0, 1), repeat=items)), dtype=np.int8)
        yield from np.array_split(every, len(list(_blocks(len(every), (stacked,)))))
        return
    for rows in _blocks(resamples, (stacked,)):
        yield rng.integers(0, 2, size=(rows, items), dtype=np.int8)


def _swapped(aggregate: Aggregate, stacked: Floats, effect: Effect, masks: Floats) -> Floats:
    """Effects [rows] after swapping; `stacked` holds both sides, masks [rows, items] are 0 or 1."""
    first = aggregate.figures(stacked, np.concatenate([1 - masks, masks], axis=1))
    second = aggregate.figures(stacked, np.concatenate([masks, 1 - masks], axis=1))
    return effect(first, second)
