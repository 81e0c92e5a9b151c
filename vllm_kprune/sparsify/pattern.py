"""Which share of a matrix becomes zero, and the exact masks for it.

A pattern is a share ("0.5") of each row, block or matrix, or N:M ("2:4"): of every M neighbouring
inputs of a row, N are kept. Masks are true where a weight becomes zero. Counts are exact: of equal
scores, the first go first.
"""

import math
from dataclasses import dataclass

import torch

from vllm_kprune.errors import KPruneError

__all__ = ["GROUP_PATTERNS", "SparsityPattern", "lowest_in_rows", "lowest_of_all", "make_pattern"]

# Name -> (weights that are kept, size of a group).
GROUP_PATTERNS = {"2:4": (2, 4), "4:8": (4, 8)}
# Sorting needs 12 bytes for each score, so rows are sorted in chunks of about this many scores.
_SORTED_AT_ONCE = 1 << 22


@dataclass(frozen=True)
class SparsityPattern:
    """The share of weights that become zero, or with `group`, in each `group` inputs of a row."""

    name: str
    share: float
    group: int | None = None

    def zeros_in(self, count: int) -> int:
        """How many of `count` weights become zero, rounded down.

        >>> SparsityPattern("0.29", 0.29).zeros_in(100)
        29
        """
        # 0.29 * 100 is 28.999999999999996.
        return math.floor(count * self.share + 1e-6)

    def check(self, name: str, width: int) -> None:
        """Raise `KPruneError` if a matrix of `width` inputs cannot take the pattern."""
        if self.group and width % self.group:
            raise KPruneError(
                f"{name} has {width} inputs, which the groups of {self.group} of --pattern "
                f"{self.name} do not divide; use --sparsity {self.share:g}"
            )


def make_pattern(sparsity: float | None, pattern: str | None) -> SparsityPattern:
    """The pattern that two options name; half of the weights if neither is given."""
    if pattern is None:
        share = 0.5 if sparsity is None else sparsity
        return SparsityPattern(f"{share:g}", share)
    if sparsity is not None:
        raise KPruneError(f"--pattern {pattern} says how many zeros there are; drop --sparsity")
    kept, group = GROUP_PATTERNS[pattern]
    return SparsityPattern(pattern, 1 - kept / group, group)


def lowest_in_rows(scores: torch.Tensor, pattern: SparsityPattern) -> torch.Tensor:
    """The mask of the lowest scores [outputs, inputs] of each row, or of each group of a row."""
    grouped = scores.reshape(-1, pattern.group) if pattern.group else scores
    zeros = pattern.zeros_in(grouped.shape[1])
    mask = torch.zeros_like(grouped, dtype=torch.bool)
    step = max(1, _SORTED_AT_ONCE // grouped.shape[1])
    for first in range(0, len(grouped), step):
        rows = slice(first, first + step)
        lowest = grouped[rows].argsort(dim=1, stable=True)[:, :zeros]
        mask[rows].scatter_(1, lowest, True)
    return mask.reshape(scores.shape)


def lowest_of_all(scores: torch.Tensor, zeros: int) -> torch.Tensor:
    """The mask of the `zeros` lowest scores of a matrix."""
    mask = torch.zeros_like(scores, dtype=torch.bool)
    if zeros == 0:
        return mask
    flat = scores.flatten()
    # Not `argsort`, whose indices take 8 bytes a weight. In bfloat16 many weights are equal, so the
    # threshold alone gives no exact count.
    threshold = flat.kthvalue(zeros).values
    torch.lt(scores, threshold, out=mask)
    missing = zeros - int(mask.sum())
    equal = (flat == threshold).nonzero().flatten()[:missing]
    mask.view(-1)[equal] = True
    return mask
