"""What a model's config.json says of one attention layer, of any family that can rank tokens.

Covers the families of `_FAMILIES`, in the spelling of transformers 5 (`rope_parameters`) and in the
older one (`rope_theta`, `rope_scaling`, `rope_local_base_freq`), nested under `text_config` or not.
What a config.json leaves out is what transformers' configuration class assumes.
Source of each rule: transformers 5, `models/*/modeling_*.py` and `modeling_rope_utils.py`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from vllm_kprune.errors import KPruneError, nearest

__all__ = ["PRECISIONS", "LayerConfig", "Precision", "Rope", "parse_layer_config"]

# Of products of queries and keys.
Precision = Literal["float32", "int8"]
PRECISIONS: tuple[Precision, ...] = ("float32", "int8")

Norm = Literal["rms", "rms_plus_one", "layer"]
_ROPE_TYPES = ("default", "linear", "llama3")


@dataclass(frozen=True)
class Rope:
    """Rotary position embedding: `scaling` is "default", "linear" or "llama3" (Llama-3.1)."""

    theta: float
    scaling: str = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_positions: int = 0


@dataclass(frozen=True)
class LayerConfig:
    """One attention layer, up to its softmax.

    `embedding_scale` multiplies embedding rows, `logit_scale` the products of queries and keys;
    `softcap` c makes a logit x into c * tanh(x / c). No `rope`: the layer knows no positions.
    """

    model_type: str
    layer: int
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    norm: Norm
    norm_eps: float
    embedding_scale: float
    logit_scale: float
    softcap: float | None
    qk_norm: bool
    qk_bias: bool
    interleaved: bool
    rope: Rope | None


@dataclass(frozen=True)
class _Family:
    """What differs between families; `defaults` are those of the configuration class.

    `qk_norm` and `qk_bias` may name the field of config.json that decides.
    """

    norm: Norm = "rms"
    scaled_embedding: bool = False
    softcap: bool = False
    qk_norm: bool | str = False
    qk_bias: bool | str = "attention_bias"
    interleaved: bool = False
    rope_only_if_sliding: bool = False
    sliding_pattern: int = 0  # every so many layers one sees everything; 0: all do
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
_QWEN3 = _Family(qk_norm=True, defaults={**_SMALL, "num_key_value_heads": 32, "head_dim": 128})

_FAMILIES: Mapping[str, _Family] = {
    "llama": _Family(defaults=_SMALL),
    "qwen2": _Family(qk_bias=True, defaults={**_SMALL, "num_key_value_heads": 32}),
    "qwen3": _QWEN3,
    "gemma2": _Family(
        norm="rms_plus_one",
        scaled_embedding=True,
        softcap=True,
        sliding_pattern=2,
        defaults={**_GEMMA, "attn_logit_softcapping": 50.0},
    ),
    "gemma3_text": _Family(
        norm="rms_plus_one",
        scaled_embedding=True,
        qk_norm=True,
        sliding_pattern=6,
        local_theta=10_000.0,
        defaults={**_GEMMA, "rope_theta": 1_000_000.0},
    ),
    "cohere": _Family(
        norm="layer",
        qk_norm="use_qk_norm",
        interleaved=True,
        defaults={**_COHERE, "rope_theta": 500_000.0},
    ),
    "cohere2": _Family(
        norm="layer",
        interleaved=True,
        rope_only_if_sliding=True,
        sliding_pattern=4,
        defaults=_COHERE,
    ),
}


def parse_layer_config(config: Mapping[str, Any], layer: int, source: Path) -> LayerConfig:
    """Read a parsed config.json for the layer with index `layer`, counted from 0.

    Raises:
        KPruneError: an unknown family or rotary scaling, no such layer, or a senseless number.
    """
    nested = config.get("text_config")
    text = nested if isinstance(nested, Mapping) else config
    model_type = str(text.get("model_type", config.get("model_type")))
    model_type = {"gemma3": "gemma3_text"}.get(model_type, model_type)
    if model_type not in _FAMILIES:
        raise KPruneError(
            f"{source}: models of type {model_type!r} cannot rank tokens; "
            f"{nearest(model_type, _FAMILIES)}"
        )
    return _Reader(text, _FAMILIES[model_type], layer, source).read(model_type)


@dataclass(frozen=True)
class _Reader:
    text: Mapping[str, Any]
    family: _Family
    layer: int
    source: Path

    def read(self, model_type: str) -> LayerConfig:
        layers = self.count("num_hidden_layers")
        if not 0 <= self.layer < layers:
            raise KPruneError(
                f"{self.source}: no layer {self.layer}; it has {layers}, counted from 0"
            )
        heads, hidden = self.count("num_attention_heads"), self.count("hidden_size")
        kv_heads = self.count("num_key_value_heads", heads)
        head_dim = self.count("head_dim", hidden // heads)
        if heads % kv_heads or head_dim % 2:
            raise KPruneError(
                f"{self.source}: {heads} heads, {kv_heads} key-value heads of {head_dim}; expected "
                "a multiple of the key-value heads, and an even size"
            )
        scalar = self.number("query_pre_attn_scalar", head_dim)
        eps = "layer_norm_eps" if self.family.norm == "layer" else "rms_norm_eps"
        return LayerConfig(
            model_type=model_type,
            layer=self.layer,
            hidden_size=hidden,
            num_heads=heads,
            num_kv_heads=kv_heads,
            head_dim=head_dim,
            norm=self.family.norm,
            norm_eps=self.number(eps, 1e-6),
            embedding_scale=math.sqrt(hidden) if self.family.scaled_embedding else 1.0,
            logit_scale=scalar**-0.5,
            softcap=self.softcap(),
            qk_norm=self.flag(self.family.qk_norm),
            qk_bias=self.flag(self.family.qk_bias),
            interleaved=self.family.interleaved,
            rope=self.rope(),
        )

    def field(self, name: str, default: Any = None) -> Any:
        """A field, where it is missing or null what the configuration class assumes."""
        value = self.text.get(name)
        return self.family.defaults.get(name, default) if value is None else value

    def number(self, name: str, default: float | None = None) -> float:
        return self.positive(name, self.field(name, default))

    def positive(self, name: str, value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e12:
            raise KPruneError(f"{self.source}: {name} is {value!r}; expected a number above 0")
        return float(value)

    def count(self, name: str, default: int | None = None) -> int:
        value = self.number(name, default)
        if value != int(value):
            raise KPruneError(f"{self.source}: {name} is {value!r}; expected a whole number")
        return int(value)

    def flag(self, value: bool | str) -> bool:
        return bool(self.text.get(value)) if isinstance(value, str) else value

    def softcap(self) -> float | None:
        if not self.family.softcap:
            return None
        if "attn_logit_softcapping" in self.text and self.text["attn_logit_softcapping"] is None:
            return None
        return self.number("attn_logit_softcapping")

    def sliding(self) -> bool:
        """Does the layer see a sliding window only?"""
        kinds = self.text.get("layer_types")
        if isinstance(kinds, list) and self.layer < len(kinds):
            return bool(kinds[self.layer] == "sliding_attention")
        pattern = self.family.sliding_pattern
        if pattern and "sliding_window_pattern" in self.text:
            pattern = self.count("sliding_window_pattern")
        return pattern > 0 and (self.layer + 1) % pattern > 0

    def rope(self) -> Rope | None:
        if self.family.rope_only_if_sliding and not self.sliding():
            return None
        said = self.text.get("rope_parameters")
        said = dict(said) if isinstance(said, Mapping) else {}
        kind = "sliding_attention" if self.sliding() else "full_attention"
        local = self.family.local_theta is not None and self.sliding()
        if isinstance(said.get(kind), Mapping):
            said = dict(said[kind])
        elif "full_attention" in said or "sliding_attention" in said:
            said = {}
        elif not said and not local and isinstance(self.text.get("rope_scaling"), Mapping):
            said = dict(self.text["rope_scaling"])  # of the layers that see everything
        return self.parse_rope(said, self.theta(local))

    def theta(self, local: bool) -> float:
        """The base, where the rotary parameters themselves do not tell it."""
        if local:
            return self.number("rope_local_base_freq", self.family.local_theta)
        return self.number("rope_theta", 10_000.0)

    def parse_rope(self, said: Mapping[str, Any], theta: float) -> Rope:
        scaling = str(said.get("rope_type", said.get("type", "default")))
        if scaling not in _ROPE_TYPES or said.get("partial_rotary_factor", 1.0) != 1.0:
            raise KPruneError(
                f"{self.source}: rotary embedding of type {scaling!r}, or of a part of each head, "
                f"cannot be used for ranking (known: {', '.join(_ROPE_TYPES)}); use another model"
            )

        def number(name: str, default: float) -> float:
            return self.positive(name, said.get(name, default))

        base = number("rope_theta", theta)
        if scaling == "default":
            return Rope(base)
        if "factor" not in said:
            raise KPruneError(f"{self.source}: rotary embedding {scaling!r} without its 'factor'")
        if scaling == "linear":
            return Rope(base, scaling, number("factor", 1.0))
        positions = number(
            "original_max_position_embeddings", self.number("max_position_embeddings", 2048)
        )
        return Rope(
            base,
            scaling,
            number("factor", 1.0),
            number("low_freq_factor", 1.0),
            number("high_freq_factor", 4.0),
            int(positions),
        )
