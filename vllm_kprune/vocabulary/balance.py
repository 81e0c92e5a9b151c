"""Weigh sources so that a single ranking serves all of them alike.

Every source may lose the same small share of its tokens. With few tokens kept, that bound holds for
some sources and not for others; the smallest vocabulary for which it holds for all is a linear
program over the tokens, and the best ranking for it orders them by a weighted sum over the sources
(its Lagrange multipliers). They are found by multiplicative weights (Arora, Hazan and Kale 2012): a
source that reaches its bound late in the ranking gains weight, one that reaches it early loses.
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from vllm_kprune.arrays import Floats

__all__ = ["balanced_weights", "places"]

_ROUNDS = 8
_STEP = 1.5
_LEAST = 2e-3


def balanced_weights(
    losses: Floats, budgets: Floats, rank: Callable[[Floats], npt.NDArray[np.int64]]
) -> Floats:
    """Weights of the sources (float64 [sources], 1 on average).

    `losses` [sources, ids] is what a source loses with each id, `budgets` [sources] what it may
    lose; `rank` gives the ranking for some weights, ids from first to last. Of all weights that
    were tried, those count with which the last source reaches its bound earliest.
    """
    weights = best = np.ones(len(budgets))
    least = np.inf
    for _ in range(_ROUNDS):
        reached = places(losses, budgets, rank(weights)) + 1
        if reached.max(initial=0) < least:
            least, best = reached.max(initial=0), weights
        weights = weights * (reached / reached.max(initial=1)) ** _STEP
        weights = np.maximum(weights * (len(weights) / max(weights.sum(), _LEAST)), _LEAST)
        # Three digits, so that the last bits of sums, which differ between machines, do not count.
        weights = np.array([float(f"{weight:.3g}") for weight in weights])
    return best


def places(
    losses: Floats, budgets: Floats, ranking: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """For each source, how much of a ranking it takes until what is left is within its budget.

    Of the losses 5, 3 and 1 per million, in this order, a budget of 2 leaves the last:

    >>> places(np.array([[5.0, 1.0, 3.0]]), np.array([2.0]), np.array([0, 2, 1])).tolist()
    [2]
    """
    # Row by row, what is lost without the last token, the last two, and so on: it rises. As many of
    # these as are within the budget can be left out.
    left = np.cumsum(losses[:, ranking[::-1]], axis=1)
    fit = [np.searchsorted(row, most, "right") for row, most in zip(left, budgets, strict=True)]
    return len(ranking) - np.array(fit, dtype=np.int64)
