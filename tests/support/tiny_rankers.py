"""A tiny model of each family that can rank, and the attention that transformers computes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from support.tiny_architectures import ARCHITECTURES, TinyArchitecture
from vllm_kprune.prompt.hidden_states import no_mask

_LLAMA3 = {
    "rope_parameters": {
        "rope_type": "llama3",
        "rope_theta": 500.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
}
_HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.1}
_SLIDING = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 8}

RANKERS: Mapping[str, TinyArchitecture] = {
    name: TinyArchitecture(*values)  # type: ignore[arg-type]
    for name, values in {
        "llama": ("LlamaForCausalLM", "LlamaConfig", "byte_level", True, 0, {**_HEADS, **_LLAMA3}),
        "llama-bias": (
            "LlamaForCausalLM", "LlamaConfig", "byte_level", False, 0,
            {**_HEADS, "attention_bias": True, "rope_parameters": {
                "rope_type": "linear", "factor": 4.0, "rope_theta": 100.0,
            }},
        ),
        "qwen2": ("Qwen2ForCausalLM", "Qwen2Config", "byte_level", True, 9, _HEADS, True),
        "gemma2": (
            "Gemma2ForCausalLM", "Gemma2Config", "byte_fallback", True, 0,
            {**_HEADS, **_SLIDING, "head_dim": 32, "query_pre_attn_scalar": 24,
             "attn_logit_softcapping": 3.0},
        ),
        "cohere-qk-norm": (
            "CohereForCausalLM", "CohereConfig", "byte_level", True, 0,
            {**_HEADS, "use_qk_norm": True, "logit_scale": 1.0},
        ),
    }.items()
} | {
    name: ARCHITECTURES[name]
    for name in ("qwen3-tied", "gemma3-text", "gemma3-multimodal", "aya-23", "aya-expanse")
}  # fmt: skip


class WholeModel:
    """The whole model in transformers, with eager attention."""

    def __init__(self, folder: Path, layers: int | None = None) -> None:
        """Run only the first `layers`, to save time: their attention is the same."""
        from transformers import AutoModel

        model = AutoModel.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
        self._model = getattr(model, "language_model", model).eval()
        if layers is not None:
            self._model.config.num_hidden_layers = layers

    @torch.inference_mode()
    def received(
        self,
        ids: Sequence[int],
        *,
        causal: bool = False,
        layer: int = 0,
        heads: Sequence[int] | None = None,
        queries: range | None = None,
    ) -> NDArray[np.float32]:
        """The paper's algorithm 1: mean over heads and queries of the attention matrix."""
        given: dict[str, Any] = {}
        if not causal:
            given["attention_mask"] = no_mask(self._model.config, len(ids))
        output = self._model(torch.tensor([list(ids)]), output_attentions=True, **given)
        matrix = output.attentions[layer][0]
        matrix = matrix if heads is None else matrix[list(heads)]
        matrix = matrix if queries is None else matrix[:, queries.start : queries.stop]
        return np.asarray(matrix.mean(dim=(0, 1)).numpy())
