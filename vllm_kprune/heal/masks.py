"""Zeros that stay zeros: the masks of a sparsified model's matrices.

Every weight of a decoder layer's matrices that is zero in the checkpoint is held at zero. Gradients
are masked before the step, so that an optimiser's moments and the norm of the gradient know nothing
of these weights either.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from vllm_kprune.sparsify.network import matrices_of

__all__ = ["ZeroMasks", "find_zeros", "rounded"]


@dataclass(frozen=True)
class ZeroMasks:
    """Parameter -> mask of its zeros; matrices without a zero are left out."""

    masks: Mapping[str, torch.Tensor]

    def hold(self, parameters: Mapping[str, nn.Parameter]) -> None:
        """Set masked weights to zero."""
        for name, mask in self.masks.items():
            if name in parameters:
                parameters[name].data.masked_fill_(mask, 0.0)

    def hold_gradients(self, parameters: Mapping[str, nn.Parameter]) -> None:
        """Set the gradients of masked weights to zero."""
        for name, mask in self.masks.items():
            gradient = parameters[name].grad if name in parameters else None
            if gradient is not None:
                gradient.masked_fill_(mask, 0.0)


def find_zeros(module: Any) -> ZeroMasks:
    """The masks of a text model's decoder layers."""
    masks = {}
    for number, layer in enumerate(module.layers):
        for name, matrix in matrices_of(layer).items():
            zeros = matrix.weight == 0
            if bool(zeros.any()):
                masks[f"layers.{number}.{name}.weight"] = zeros
    return ZeroMasks(masks)


def rounded(values: torch.Tensor, dtype: torch.dtype, zeros: torch.Tensor | None) -> torch.Tensor:
    """Weights in the data type of a file, with exactly the zeros of a mask, if there is one."""
    kept = values.detach().to("cpu", dtype)
    if zeros is None:
        return kept
    zeros = zeros.cpu()
    kept = kept.masked_fill(zeros, 0.0)
    # A weight that is too small for the data type would be counted as one zero more.
    return torch.where((kept == 0) & ~zeros, torch.finfo(dtype).tiny, kept)
