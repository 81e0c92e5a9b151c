"""The model families whose attention layers can rank tokens: one row for each `model_type`.

A new family that differs only in these properties is a new row. Its numbers are checked against the
whole model in transformers by tests/prompt/test_ranker.py, once it has a row in
tests/support/tiny_rankers.py.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

__all__ = ["FAMILIES", "AttentionFamily", "Norm"]

# rms_plus_one: the stored weight is 1 less than the factor (Gemma). layer: LayerNorm without bias.
Norm = Literal["rms", "rms_plus_one", "layer"]


@dataclass(frozen=True)
class AttentionFamily:
    """What differs between families. `defaults` are those of transformers' configuration class.

    `qk_norm` and `qk_bias` may name the field of config.json that decides. `sliding_pattern` n:
    every n-th layer sees everything, the others see a sliding window; 0: all see everything.
    """

    norm: Norm = "rms"
    scaled_embedding: bool = False
    softcap: bool = False
    qk_norm: bool | str = False
    qk_bias: bool | str = "attention_bias"
    interleaved: bool = False
    rope_only_if_sliding: bool = False
    sliding_pattern: int = 0
    local_theta: float | None = None
    defaults: Mapping[str, Any] = field(default_factory=dict)


_GEMMA: dict[str, Any] = {
    "hidden_size": 2304,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "num_hidden_layers": 26,
    "head_dim": 256,
    "query_pre_attn_scalar": 256,
}
_COHERE: dict[str, Any] = {
    "hidden_size": 8192,
    "num_attention_heads": 64,
    "num_hidden_layers": 40,
    "layer_norm_eps": 1e-5,
}
_SMALL: dict[str, Any] = {
    "hidden_size": 4096,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
}
_QWEN3 = AttentionFamily(
    qk_norm=True, defaults={**_SMALL, "num_key_value_heads": 32, "head_dim": 128}
)

FAMILIES: Mapping[str, AttentionFamily] = {
    "llama": AttentionFamily(defaults=_SMALL),
    # Biases are part of Qwen2's architecture: config.json has no field for them. And a missing
    # number of key-value heads means 32, not, as for Llama, as many as there are heads.
    "qwen2": AttentionFamily(qk_bias=True, defaults={**_SMALL, "num_key_value_heads": 32}),
    "qwen3": _QWEN3,
    "gemma2": AttentionFamily(
        norm="rms_plus_one",
        scaled_embedding=True,
        softcap=True,
        sliding_pattern=2,
        defaults={**_GEMMA, "attn_logit_softcapping": 50.0},
    ),
    "gemma3_text": AttentionFamily(
        norm="rms_plus_one",
        scaled_embedding=True,
        qk_norm=True,
        sliding_pattern=6,
        # Layers with a sliding window rotate by a base frequency of their own.
        local_theta=10_000.0,
        defaults={**_GEMMA, "rope_theta": 1_000_000.0},
    ),
    "cohere": AttentionFamily(
        norm="layer",
        qk_norm="use_qk_norm",
        interleaved=True,
        defaults={**_COHERE, "rope_theta": 500_000.0},
    ),
    "cohere2": AttentionFamily(
        norm="layer",
        interleaved=True,
        rope_only_if_sliding=True,
        sliding_pattern=4,
        defaults=_COHERE,
    ),
}
