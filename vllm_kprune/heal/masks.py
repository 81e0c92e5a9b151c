"""Zeros that stay zeros: the masks of a sparsified model's matrices.

In a sparsified matrix, every weight that is zero in the checkpoint is held at zero. Sparsified are
the matrices that `kprune-sparsity.json` names, and any other one that has many zeros: another tool
may have made them. A dense matrix has a few too, and those may change.

Gradients are masked before the step, so that an optimiser's moments and the norm of the gradient
know nothing of these weights either.
"""

from collections.abc import Container, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from vllm_kprune.heal.network import TextModel
from vllm_kprune.sparsify.network import matrices_of
from vllm_kprune.sparsify.record import SPARSITY_NAME
from vllm_kprune.storage.bounded import NOTES, read_object

__all__ = ["ZeroMasks", "find_zeros", "rounded"]

# Weights of a bfloat16 model that came from 8 bits are zero in 4 or 5 % of the places.
_MANY = 0.2


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


def find_zeros(model: TextModel) -> ZeroMasks:
    """The masks of the sparsified matrices."""
    masks, named = {}, _sparsified(model.body.base.folder)
    for number, layer in enumerate(model.module.layers):
        for name, matrix in matrices_of(layer).items():
            name, zeros = f"layers.{number}.{name}.weight", matrix.weight == 0
            share = float(zeros.float().mean())
            if share >= _MANY or (share > 0 and model.body.prefix + name in named):
                masks[name] = zeros
    return ZeroMasks(masks)


def _sparsified(folder: Path) -> Container[str]:
    path = folder / SPARSITY_NAME
    named = read_object(path, NOTES).get("matrices") if path.is_file() else None
    return named if isinstance(named, dict) else ()


def rounded(values: torch.Tensor, dtype: torch.dtype, zeros: torch.Tensor | None) -> torch.Tensor:
    """Weights in the data type of a file, with exactly the zeros of a mask, if there is one."""
    kept = values.detach().to("cpu", dtype)
    if zeros is None:
        return kept
    zeros = zeros.cpu()
    kept = kept.masked_fill(zeros, 0.0)
    # A weight that is too small for the data type would be counted as one zero more.
    return torch.where((kept == 0) & ~zeros, torch.finfo(dtype).tiny, kept)
