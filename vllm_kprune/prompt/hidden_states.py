"""The input of a deeper layer of a model: for comparing layers, never for serving.

The layers before it run in transformers, in float32, and attend as the ranking does: without any
mask, or causally. transformers is imported here only, and only if a deeper layer is asked for.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from vllm_kprune.checkpoint.manifest import is_overlay, load_manifest
from vllm_kprune.errors import KPruneError

__all__ = ["HiddenStates", "no_mask"]


class HiddenStates:
    """A model's first layers. Called with ids of the base model, returns the input of `layer`."""

    def __init__(self, folder: Path, layer: int) -> None:
        try:
            from transformers import AutoConfig, AutoModel
        except ImportError as error:
            raise KPruneError(
                "ranking with a layer above 0 needs transformers: "
                "pip install 'vllm-kprune[demo]', or use layer 0"
            ) from error
        if is_overlay(folder):
            folder = load_manifest(folder).check_base()
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        model = AutoModel.from_pretrained(
            folder,
            config=config,
            dtype=torch.float32,
            use_safetensors=True,
            trust_remote_code=False,
        )
        text = getattr(model, "language_model", model)
        text.set_attn_implementation("eager")
        # Later layers are not needed. `layer` itself stays: transformers applies the final norm to
        # the output of the last layer, and what is wanted is the plain input of `layer`.
        text.layers = text.layers[: layer + 1]
        text.config.num_hidden_layers = layer + 1
        self._model = text.eval()
        self._layer = layer

    def __call__(self, ids: torch.Tensor, causal: bool) -> torch.Tensor:
        """[n, hidden] float32, before the layer's input norm."""
        given: dict[str, Any] = {}
        if not causal:
            given["attention_mask"] = no_mask(self._model.config, len(ids))
        output = self._model(ids[None], output_hidden_states=True, use_cache=False, **given)
        # hidden_states[0] is the output of the embedding, so number n is the input of layer n.
        states: torch.Tensor = output.hidden_states[self._layer][0]
        return states


def no_mask(config: Any, length: int) -> Any:
    """A mask for a text model of transformers that hides nothing, not even beyond a window."""
    # A mask is added to the logits: 0 hides nothing, -inf would.
    zeros = torch.zeros(1, 1, length, length)
    kinds = set(getattr(config, "layer_types", None) or ())
    # These models keep a mask for each kind of layer, so both kinds need one.
    by_kind = "sliding_attention" in kinds or config.model_type.startswith(("gemma", "cohere2"))
    return dict.fromkeys(("full_attention", "sliding_attention"), zeros) if by_kind else zeros
