"""SparseGPT (Frantar and Alistarh 2023, algorithm 1): prune a matrix and make up for the error.

Columns are handled from left to right. When weights of a column become zero, the columns to the
right are changed so that the layer's output on the calibration text moves as little as possible:
row c of the Cholesky factor of the inverse Hessian says by how much. As in the authors' code, the
mask is chosen in blocks of 128 columns (or in each group of N:M), and columns to the right of a
block are updated once a block.

Two differences from that code. Counts are exact: it prunes one weight more in each block. And where
an input was zero in the whole text, its weights are the first to be pruned, but those that the
pattern keeps stay as they are; it sets all of them to zero.
"""

import torch

from vllm_kprune.errors import KPruneError
from vllm_kprune.sparsify.pattern import SparsityPattern, lowest_in_rows, lowest_of_all

__all__ = ["BLOCK_COLUMNS", "DAMPING", "inverse_factor", "prune_and_compensate"]

BLOCK_COLUMNS = 128
# Added to the Hessian's diagonal, as a share of its mean.
DAMPING = 0.01
_MOST_DAMPING = 1.0


def inverse_factor(hessian: torch.Tensor) -> tuple[torch.Tensor, float]:
    """The upper Cholesky factor U of the inverse Hessian (U^T U), and the damping that it took.

    Changes `hessian`. The damping grows tenfold until the matrix can be factored in float32.
    """
    diagonal = hessian.diagonal()
    mean = diagonal.mean()
    # Nothing is known about an input that never came: as stiff as the average, and independent.
    diagonal[diagonal == 0] = mean
    damping = added = DAMPING
    while damping <= _MOST_DAMPING:
        diagonal += added * mean
        lower, failed = torch.linalg.cholesky_ex(hessian)
        if not failed:
            inverse = torch.cholesky_inverse(lower)
            del lower
            upper, failed = torch.linalg.cholesky_ex(inverse, upper=True)
            if not failed and bool(torch.isfinite(upper).all()):
                return upper, damping
        damping, added = damping * 10, damping * 9
    raise KPruneError(
        "SparseGPT cannot invert the Hessian of this text, even with heavy damping; use more "
        "--samples, or --method wanda"
    )


def prune_and_compensate(
    weight: torch.Tensor, factor: torch.Tensor, dead: torch.Tensor, pattern: SparsityPattern
) -> torch.Tensor:
    """Prune `weight` [outputs, inputs] in place and return the mask of the zeros.

    `factor` is from `inverse_factor`; `dead` [inputs] marks inputs that never came.
    """
    # Transposed, a column is one stretch of memory: several times as fast.
    columns = weight.T.contiguous()
    mask = torch.zeros_like(columns, dtype=torch.bool)
    for first in range(0, len(columns), BLOCK_COLUMNS):
        block = slice(first, first + BLOCK_COLUMNS)
        errors = _prune_block(
            columns[block], factor[block, block].contiguous(), dead[block], pattern, mask[block]
        )
        columns[block.stop :] -= factor[block, block.stop :].T @ errors
    weight.copy_(columns.T)
    return mask.T


def _prune_block(
    columns: torch.Tensor,
    factor: torch.Tensor,
    dead: torch.Tensor,
    pattern: SparsityPattern,
    mask: torch.Tensor,
) -> torch.Tensor:
    """Prune a block [columns, outputs] in place and fill its mask; the errors, for the rest."""
    diagonal = factor.diagonal()
    errors = torch.zeros_like(columns)

    def scores(part: slice) -> torch.Tensor:
        # w^2 / U_cc^2: how much the output error grows if the weight goes (equation 3).
        saliency = (columns[part] / diagonal[part, None]).square()
        return saliency.masked_fill(dead[part, None], 0.0)

    if not pattern.group:
        mask |= lowest_of_all(scores(slice(None)), pattern.zeros_in(columns.numel()))
    for number in range(len(columns)):
        # A group is chosen late, from weights that columns before it have changed already.
        if pattern.group and number % pattern.group == 0:
            group = slice(number, number + pattern.group)
            mask[group] = lowest_in_rows(scores(group).T.contiguous(), pattern).T
        torch.mul(columns[number], mask[number], out=errors[number])
        errors[number] /= diagonal[number]
        columns[number + 1 :].addr_(factor[number, number + 1 :], errors[number], alpha=-1)
        columns[number].masked_fill_(mask[number], 0.0)
    return errors
