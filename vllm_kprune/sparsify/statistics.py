"""What a method remembers of a matrix's inputs, added up over the calibration samples."""

from collections.abc import Callable
from typing import Protocol, TypeAlias

import torch

__all__ = ["ColumnSquares", "Hessian", "InputStatistic", "MakeStatistic"]


class InputStatistic(Protocol):
    """A sum over the inputs [tokens, width] of a matrix."""

    def add(self, inputs: torch.Tensor) -> None:
        """Add the inputs of one sample."""

    @property
    def diagonal(self) -> torch.Tensor:
        """The sum of squares of each input, up to a factor; infinite or NaN if one was."""


# From the width of the inputs, and the device.
MakeStatistic: TypeAlias = Callable[[int, torch.device], InputStatistic]


class ColumnSquares:
    """The sum of squares of each input: Wanda's statistic."""

    def __init__(self, width: int, device: torch.device) -> None:
        self.diagonal = torch.zeros(width, dtype=torch.float64, device=device)

    def add(self, inputs: torch.Tensor) -> None:
        """Add the inputs of one sample."""
        self.diagonal += inputs.float().square().sum(0, dtype=torch.float64)


class Hessian:
    """2 X^T X in float32 [width, width]: the Hessian of a matrix's squared output error."""

    def __init__(self, width: int, device: torch.device) -> None:
        self.matrix = torch.zeros(width, width, device=device)

    def add(self, inputs: torch.Tensor) -> None:
        """Add the inputs of one sample."""
        inputs = inputs.float()
        self.matrix.addmm_(inputs.T, inputs, alpha=2)

    @property
    def diagonal(self) -> torch.Tensor:
        """Twice the sum of squares of each input."""
        return self.matrix.diagonal()
