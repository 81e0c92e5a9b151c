"""Read from config.json what one attention layer needs up to its softmax.

Both spellings are read: that of transformers 5 (`rope_parameters`) and the older one (`rope_theta`,
`rope_scaling`, `rope_local_base_freq`), nested under `text_config` or not. A missing field means
what transformers' configuration class assumes. Each rule is taken from transformers 5,
`models/*/modeling_*.py` and `modeling_rope_utils.py`. `layer_families` has what differs by family.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from vllm_kprune.errors import KPruneError, nearest, shown
from vllm_kprune.prompt.layer_families import FAMILIES, AttentionFamily, Norm

__all__ = ["PRECISIONS", "LayerConfig", "Precision", "Rope", "parse_layer_config"]

# How products of queries and keys are computed.
Precision = Literal["float32", "int8"]
PRECISIONS: tuple[Precision, ...] = ("float32", "int8")

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

    `embedding_scale` multiplies embedding rows, `logit_scale` the products of queries and keys. A
    `softcap` c turns a logit x into c * tanh(x / c). `rope` None: the layer ignores positions.
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


def parse_layer_config(config: Mapping[str, Any], layer: int, source: Path) -> LayerConfig:
    """Read a parsed config.json for the layer with index `layer`, counted from 0.

    Raises:
        KPruneError: an unknown family or rotary scaling, no such layer, or an impossible number.
    """
    nested = config.get("text_config")
    text = nested if isinstance(nested, Mapping) else config
    model_type = str(text.get("model_type", config.get("model_type")))
    model_type = {"gemma3": "gemma3_text"}.get(model_type, model_type)
    if model_type not in FAMILIES:
        raise KPruneError(
            f"{source}: models of type {shown(model_type)} cannot rank tokens; "
            f"{nearest(model_type[:64], FAMILIES)}"
        )
    return _ConfigReader(text, FAMILIES[model_type], layer, source).read(model_type)


@dataclass(frozen=True)
class _ConfigReader:
    text: Mapping[str, Any]
    family: AttentionFamily
    layer: int
    source: Path

    def read(self, model_type: str) -> LayerConfig:
        layers = self.count("num_hidden_layers")
        if not 0 <= self.layer < layers:
            raise KPruneError(
                f"{self.source}: there is no layer {self.layer}; it has {layers}, counted from 0"
            )
        heads, kv_heads, head_dim, hidden = self.sizes()
        # In Gemma, the root of this number divides the logits; elsewhere it is the size of a head.
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

    def sizes(self) -> tuple[int, int, int, int]:
        """Query heads, key-value heads, dimensions of a head, and of the model."""
        heads, hidden = self.count("num_attention_heads"), self.count("hidden_size")
        kv_heads = self.count("num_key_value_heads", heads)
        # Only a default: a head may be larger than its share of `hidden_size`, as in Gemma-3.
        head_dim = self.count("head_dim", hidden // heads)
        if heads % kv_heads or head_dim % 2:
            raise KPruneError(
                f"{self.source}: {heads} heads, {kv_heads} key-value heads, {head_dim} dimensions; "
                "expected a number of heads that the key-value heads divide, and even dimensions"
            )
        return heads, kv_heads, head_dim, hidden

    def field(self, name: str, default: Any = None) -> Any:
        """A field, or what the configuration class assumes if it is missing or null."""
        value = self.text.get(name)
        return self.family.defaults.get(name, default) if value is None else value

    def number(self, name: str, default: float | None = None) -> float:
        return self.positive(name, self.field(name, default))

    def positive(self, name: str, value: Any) -> float:
        # In Python, true is an int and would pass for 1. NaN fails every comparison.
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e12:
            raise KPruneError(f"{self.source}: {name} is {shown(value)}; expected a number above 0")
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
        # Unlike in `field`, null is not the same as missing here: it switches the soft-cap off.
        if "attn_logit_softcapping" in self.text and self.text["attn_logit_softcapping"] is None:
            return None
        return self.number("attn_logit_softcapping")

    def sliding(self) -> bool:
        """True if the layer sees only a sliding window."""
        kinds = self.text.get("layer_types")
        if isinstance(kinds, list) and self.layer < len(kinds):
            return bool(kinds[self.layer] == "sliding_attention")
        pattern = self.family.sliding_pattern
        if pattern and "sliding_window_pattern" in self.text:
            pattern = self.count("sliding_window_pattern")
        # With a pattern of 6, layers 5, 11, 17 … see everything, counted from 0.
        return pattern > 0 and (self.layer + 1) % pattern > 0

    def rope(self) -> Rope | None:
        if self.family.rope_only_if_sliding and not self.sliding():
            return None
        said = self.text.get("rope_parameters")
        said = dict(said) if isinstance(said, Mapping) else {}
        kind = "sliding_attention" if self.sliding() else "full_attention"
        local = self.family.local_theta is not None and self.sliding()
        # transformers 5 has parameters for each kind of layer. If it names the other kind only,
        # nothing is said about this one.
        if isinstance(said.get(kind), Mapping):
            said = dict(said[kind])
        elif "full_attention" in said or "sliding_attention" in said:
            said = {}
        elif not said and not local and isinstance(self.text.get("rope_scaling"), Mapping):
            said = dict(self.text["rope_scaling"])  # it scales only layers that see everything
        return self.parse_rope(said, self.theta(local))

    def theta(self, local: bool) -> float:
        """The base frequency, if the rotary parameters do not give it."""
        if local:
            return self.number("rope_local_base_freq", self.family.local_theta)
        return self.number("rope_theta", 10_000.0)

    def parse_rope(self, said: Mapping[str, Any], theta: float) -> Rope:
        scaling = str(said.get("rope_type", said.get("type", "default")))
        if scaling not in _ROPE_TYPES or said.get("partial_rotary_factor", 1.0) != 1.0:
            raise KPruneError(
                f"{self.source}: cannot rank with a rotary embedding of type {shown(scaling)}, or "
                f"of part of each head (known types: {', '.join(_ROPE_TYPES)}); use another model"
            )

        def number(name: str, default: float) -> float:
            return self.positive(name, said.get(name, default))

        # The base among the rotary parameters comes before the older field `rope_theta`.
        base = number("rope_theta", theta)
        if scaling == "default":
            return Rope(base)
        if "factor" not in said:
            raise KPruneError(f"{self.source}: rotary embedding {scaling!r} has no 'factor'")
        if scaling == "linear":
            return Rope(base, scaling, number("factor", 1.0))
        # In Llama-3.1 the context was extended: the scaling needs the length before that.
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
