"""Experts as ordinary linear layers, one for each matrix of the checkpoint.

transformers keeps the experts of a layer in two fused tensors and calls no module for one of them,
so nothing could watch an expert's inputs. This does the same calculation with a module for each
matrix, under the names that checkpoints use.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

__all__ = ["SeparateExperts", "separate_experts"]


class _Expert(nn.Module):
    def __init__(self, hidden: int, inner: int, activation: Callable[..., torch.Tensor]) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(hidden, inner, bias=False)
        self.up_proj = nn.Linear(hidden, inner, bias=False)
        self.down_proj = nn.Linear(inner, hidden, bias=False)
        self.activation = activation

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        inner = self.activation(self.gate_proj(tokens)) * self.up_proj(tokens)
        result: torch.Tensor = self.down_proj(inner)
        return result


class SeparateExperts(nn.ModuleList):
    """Takes the place of a fused module of experts."""

    def forward(
        self, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
    ) -> torch.Tensor:
        """The weighted sum of the chosen experts; index and weights are [tokens, chosen]."""
        total = torch.zeros_like(hidden_states)
        for number, expert in enumerate(self):
            token, place = torch.where(top_k_index == number)
            if len(token):
                output = expert(hidden_states[token]) * top_k_weights[token, place, None]
                total.index_add_(0, token, output.to(total.dtype))
        return total


def separate_experts(layer: nn.Module) -> None:
    """Replace fused experts of a decoder layer on the meta device; other layers stay."""
    for module in list(layer.modules()):
        experts = getattr(module, "experts", None)
        fused = getattr(experts, "down_proj", None)
        if isinstance(experts, nn.Module) and isinstance(fused, nn.Parameter) and fused.ndim == 3:
            number, hidden, inner = fused.shape
            activation: Any = experts.act_fn
            with torch.device("meta"):
                made = [_Expert(hidden, inner, activation) for _ in range(number)]
            module.experts = SeparateExperts(made)
