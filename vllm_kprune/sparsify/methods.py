"""The pruning methods, one row each: what they remember of the inputs, and how they prune.

A method prunes a float32 matrix [outputs, inputs] in place. SparseGPT also changes the weights that
it keeps.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from vllm_kprune.sparsify.pattern import SparsityPattern, lowest_in_rows, lowest_of_all
from vllm_kprune.sparsify.sparsegpt import inverse_factor, prune_and_compensate
from vllm_kprune.sparsify.statistics import (
    ColumnSquares,
    Hessian,
    InputStatistic,
    MakeStatistic,
)

__all__ = ["METHODS", "MatrixPruner", "PruningMethod", "prune_by_magnitude"]

# Prunes a matrix in place and returns the mask of its zeros.
MatrixPruner = Callable[[torch.Tensor, SparsityPattern], torch.Tensor]


@dataclass(frozen=True)
class PruningMethod:
    """A method. One without a statistic needs no calibration.

    `pruner` prepares what matrices of the same inputs share; it may use up the statistic.
    """

    statistic: MakeStatistic | None
    pruner: Callable[[InputStatistic], tuple[MatrixPruner, dict[str, float]]]


def prune_by_magnitude(weight: torch.Tensor, pattern: SparsityPattern) -> torch.Tensor:
    """Zero the smallest weights of the matrix, or of each group of a row."""
    scores = weight.abs()
    if pattern.group:
        mask = lowest_in_rows(scores, pattern)
    else:
        mask = lowest_of_all(scores, pattern.zeros_in(scores.numel()))
    weight.masked_fill_(mask, 0.0)
    return mask


def _magnitude(statistic: InputStatistic) -> tuple[MatrixPruner, dict[str, float]]:
    return prune_by_magnitude, {}


def _wanda(statistic: InputStatistic) -> tuple[MatrixPruner, dict[str, float]]:
    """Sun et al. 2024, equation 1: |w| * ||x||_2, compared within each row (output)."""
    norms = statistic.diagonal.sqrt().float()

    def prune(weight: torch.Tensor, pattern: SparsityPattern) -> torch.Tensor:
        mask = lowest_in_rows(weight.abs() * norms, pattern)
        weight.masked_fill_(mask, 0.0)
        return mask

    return prune, {}


def _sparsegpt(statistic: InputStatistic) -> tuple[MatrixPruner, dict[str, float]]:
    assert isinstance(statistic, Hessian)
    dead = statistic.diagonal == 0
    factor, damping = inverse_factor(statistic.matrix)

    def prune(weight: torch.Tensor, pattern: SparsityPattern) -> torch.Tensor:
        return prune_and_compensate(weight, factor, dead, pattern)

    return prune, {"damping": damping}


METHODS: Mapping[str, PruningMethod] = {
    "magnitude": PruningMethod(None, _magnitude),
    "sparsegpt": PruningMethod(Hessian, _sparsegpt),
    "wanda": PruningMethod(ColumnSquares, _wanda),
}
