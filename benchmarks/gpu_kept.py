"""The original restricted to the ids that an overlay keeps, for law 4 on both of vLLM's runners.

`allowed_token_ids` would do, but the V2 runner takes at most 1,024 of them.
"""

import os
from pathlib import Path
from typing import Any

import torch
from gpu_models import kept_rows

from vllm_kprune.serving.compat.processors import V1LogitsProcessor, V2LogitsProcessor

__all__ = ["OVERLAY", "KeptIds"]

# The overlay's folder, in the environment.
OVERLAY = "KPRUNE_GPU_OVERLAY"


class KeptIds(V1LogitsProcessor, V2LogitsProcessor):
    """Refuses, for every request, what the overlay does not have."""

    def __init__(self, vllm_config: Any, where: Any, is_pin_memory: bool | None = None) -> None:
        """V1 gives a `torch.device`, V2 its request states."""
        device = where if isinstance(where, torch.device) else where.device
        refused = torch.ones(vllm_config.model_config.get_vocab_size(), dtype=torch.bool)
        refused[kept_rows(Path(os.environ[OVERLAY]))] = False
        self._refused = refused.to(device)

    def is_argmax_invariant(self) -> bool:
        """V1: it may refuse the most likely token."""
        return False

    def update_state(self, batch_update: Any) -> None:
        """V1: all requests are alike."""

    def apply(self, logits: torch.Tensor, ctx: Any = None) -> torch.Tensor:
        """Refuse in place, on both runners."""
        return logits.masked_fill_(self._refused, float("-inf"))
