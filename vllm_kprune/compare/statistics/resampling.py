"""The paired bootstrap, and p-values by swapping the sides of whole items.

Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapters 6 and 15. Both
sides of an item are drawn together, so that whatever makes an item hard cancels out. Memory is
bounded because resamples are made in blocks.

A worked example of the permutation test: four items score [1, 1, 1, 0] on the original side and
[0, 0, 1, 0] on the pruned side, an effect of -0.50. Only the first two items differ. Swapping the
sides of none, one, the other or both of them gives the effects -0.50, 0, 0 and +0.50. Two of these
four are at least as large as the observed effect, so p = 2 / 4 = 0.5.
"""

from collections.abc import Callable, Iterator
from itertools import product

import numpy as np
from numpy.typing import NDArray

from vllm_kprune.compare.measurements import Floats
from vllm_kprune.compare.statistics.aggregates import Aggregate

__all__ = ["Effect", "bootstrap_replicates", "differ", "permutation_test"]

Effect = Callable[[Floats, Floats], Floats]
"""The effect from scores of the original and of the pruned side, [resamples] each."""

# 32 MB of float64 for each of the few arrays that a block needs.
_BLOCK_CELLS = 1 << 22
_EXACT_ITEMS = 13  # 2 ** 13 = 8,192 arrangements: no more work than 10,000 random ones


def bootstrap_replicates(
    aggregate: Aggregate, sides: tuple[Floats, ...], resamples: int, rng: np.random.Generator
) -> Floats:
    """Scores of each side over `resamples` draws of the items, [sides, resamples]."""
    items = len(sides[0])
    blocks = []
    for rows in _blocks(resamples, sides):
        # Each row draws from its own range of numbers, so that one bincount counts all rows.
        drawn = rng.integers(0, items, size=(rows, items)) + items * np.arange(rows)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=rows * items)
        weights = counts.reshape(rows, items).astype(np.float64)
        blocks.append(np.stack([aggregate.compute(side, weights) for side in sides]))
    return np.concatenate(blocks, axis=1)


def _blocks(rows: int, sides: tuple[Floats, ...]) -> Iterator[int]:
    """Numbers of rows that add up to `rows`, each small enough for memory."""
    most = max(1, _BLOCK_CELLS // max(1, max(side.size for side in sides)))
    while rows > 0:
        yield min(rows, most)
        rows -= most


def permutation_test(
    aggregate: Aggregate,
    sides: tuple[Floats, Floats],
    effect: Effect,
    resamples: int,
    rng: np.random.Generator,
) -> float:
    """Two-sided p-value of the hypothesis that the sides do not differ.

    It is the share of random swaps of the two sides of items that give an effect at least as large
    as the observed one. For a mean this is the sign-flip test. With at most 13 differing items, all
    swaps are tried. Otherwise the observed arrangement counts as one of those drawn (Phipson and
    Smyth 2010), so that the p-value is never 0.
    """
    original, pruned = sides
    items = len(original)
    unequal = np.nonzero(differ(original, pruned))[0]
    if not len(unequal):
        return 1.0
    stacked = np.concatenate([original, pruned])
    observed = abs(_swapped(aggregate, stacked, effect, np.zeros((1, items)))[0])
    # The same effect, summed in another order, may differ in its last bits and still counts.
    least = observed * (1 - 1e-9)
    exact = len(unequal) <= _EXACT_ITEMS
    larger = tried = 0
    for chosen in _swaps(len(unequal), resamples, rng, stacked):
        masks = np.zeros((len(chosen), items))
        # Items that are alike stay: swapping them changes nothing, and would only multiply the
        # arrangements.
        masks[:, unequal] = chosen
        effects = np.abs(_swapped(aggregate, stacked, effect, masks))
        # Written so that an undefined effect (NaN) counts as large: evidence against a difference.
        larger += int(np.count_nonzero(~(effects < least)))
        tried += len(chosen)
    return larger / tried if exact else (larger + 1) / (tried + 1)


def differ(original: Floats, pruned: Floats) -> NDArray[np.bool_]:
    """Which items differ in any feature; NaN padding equals NaN padding."""
    same = (original == pruned) | (np.isnan(original) & np.isnan(pruned))
    different: NDArray[np.bool_] = ~same.all(axis=1)
    return different


def _swaps(
    items: int, resamples: int, rng: np.random.Generator, stacked: Floats
) -> Iterator[NDArray[np.int8]]:
    """Which items to swap, in blocks [rows, items]: all combinations, or random ones."""
    if items <= _EXACT_ITEMS:
        every = np.array(list(product((0, 1), repeat=items)), dtype=np.int8)
        yield from np.array_split(every, len(list(_blocks(len(every), (stacked,)))))
        return
    for rows in _blocks(resamples, (stacked,)):
        yield rng.integers(0, 2, size=(rows, items), dtype=np.int8)


def _swapped(aggregate: Aggregate, stacked: Floats, effect: Effect, masks: Floats) -> Floats:
    """Effects [rows] after swapping; `stacked` holds both sides, masks [rows, items] are 0 or 1."""
    # Row i of `stacked` is an item's original side, row items + i its pruned side. A swap moves the
    # item's weight from one to the other, so every aggregate can be tested without copies.
    first = aggregate.compute(stacked, np.concatenate([1 - masks, masks], axis=1))
    second = aggregate.compute(stacked, np.concatenate([masks, 1 - masks], axis=1))
    return effect(first, second)
