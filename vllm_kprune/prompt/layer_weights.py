"""Read the tensors of one attention layer from a model folder, and map its embedding.

Only the embedding, the layer's input norm and its query and key projections are read. The embedding
stays in the file: its rows are read where they are used, and processes share the pages. A folder of
`kprune build` has no weights of its own, so its rows come from its base.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from vllm_kprune.checkpoint.manifest import is_overlay, load_manifest
from vllm_kprune.checkpoint.model_folder import weight_files
from vllm_kprune.checkpoint.shards import StoredTensor, read_shard
from vllm_kprune.errors import KPruneError
from vllm_kprune.prompt.layer_config import LayerConfig, Rope

__all__ = ["LayerWeights", "load_weights"]

# Names in a causal model, in a bare one, and two spellings in multimodal ones.
_PREFIXES = ("model.", "", "language_model.model.", "model.language_model.")
_EMBEDDING = "embed_tokens.weight"
_PLAIN = ("F32", "F16", "BF16")


@dataclass(frozen=True)
class LayerWeights:
    """The tensors of one layer. Rotary dimensions are in halves, whatever layout the file has.

    `embedding` [rows, hidden] is mapped, in the file's data type. `kept_rows` has the row for each
    id of a pruned tokenizer. The others are float32. `queries` is [heads * dim, hidden], and `keys`
    [kv heads * dim, hidden].
    """

    embedding: torch.Tensor
    kept_rows: torch.Tensor | None
    norm: torch.Tensor
    queries: torch.Tensor
    keys: torch.Tensor
    query_bias: torch.Tensor | None
    key_bias: torch.Tensor | None
    query_norm: torch.Tensor | None
    key_norm: torch.Tensor | None
    frequencies: torch.Tensor | None

    @property
    def rows(self) -> int:
        """The number of token ids that have an embedding."""
        return len(self.embedding if self.kept_rows is None else self.kept_rows)


def load_weights(folder: Path, config: LayerConfig) -> LayerWeights:
    """Read the layer that `config` describes from the folder of a model or an overlay.

    Raises:
        KPruneError: a tensor is missing, quantised or of another shape, or the base has changed.
    """
    kept_rows = None
    if is_overlay(folder):
        manifest = load_manifest(folder)
        if manifest.tokenizer_only:
            raise KPruneError(
                f"{folder} is a pruned tokenizer without weights; name a model's folder instead"
            )
        kept_rows = torch.tensor(manifest.kept_rows)
        folder = manifest.check_base()
    return _WeightReader(folder, _stored(folder), config).read(kept_rows)


def _stored(folder: Path) -> Mapping[str, tuple[Path, StoredTensor]]:
    """The file and the description of every tensor, by name. Only headers are read."""
    paths = [folder / name for name in weight_files(folder)]
    return {tensor.name: (path, tensor) for path in paths for tensor in read_shard(path).tensors}


@dataclass(frozen=True)
class _WeightReader:
    folder: Path
    stored: Mapping[str, tuple[Path, StoredTensor]]
    config: LayerConfig

    def read(self, kept_rows: torch.Tensor | None) -> LayerWeights:
        config, prefix = self.config, self.prefix()
        layer = f"{prefix}layers.{config.layer}."
        embedding = self.tensor(prefix + _EMBEDDING, (None, config.hidden_size))
        # Kept ids increase (the manifest checks it), so the last row is the largest.
        if kept_rows is not None and int(kept_rows[-1]) >= len(embedding):
            raise KPruneError(
                f"{self.folder} has {len(embedding)} embedding rows, but the overlay keeps row "
                f"{int(kept_rows[-1])}; build the overlay again"
            )
        norm = self.tensor(f"{layer}input_layernorm.weight", (config.hidden_size,)).float()
        return LayerWeights(
            embedding=embedding,
            kept_rows=kept_rows,
            norm=norm + 1.0 if config.norm == "rms_plus_one" else norm.clone(),
            queries=self.matrix(f"{layer}self_attn.q_proj", config.num_heads),
            keys=self.matrix(f"{layer}self_attn.k_proj", config.num_kv_heads),
            query_bias=self.bias(f"{layer}self_attn.q_proj", config.num_heads),
            key_bias=self.bias(f"{layer}self_attn.k_proj", config.num_kv_heads),
            query_norm=self.qk_norm(f"{layer}self_attn.q_norm", config.num_heads),
            key_norm=self.qk_norm(f"{layer}self_attn.k_norm", config.num_kv_heads),
            frequencies=_frequencies(config.rope, config.head_dim) if config.rope else None,
        )

    def prefix(self) -> str:
        for prefix in _PREFIXES:
            if prefix + _EMBEDDING in self.stored:
                return prefix
        stems = [prefix + _EMBEDDING.removesuffix("weight") for prefix in _PREFIXES]
        # A quantised embedding has tensors of other names, but their names begin alike.
        packed = [name for name in self.stored if any(name.startswith(stem) for stem in stems)]
        reason = f"it is quantised ({packed[0]})" if packed else f"tried {_PREFIXES[0]}{_EMBEDDING}"
        raise KPruneError(f"{self.folder}: no plain embedding, {reason}; use another model to rank")

    def tensor(self, name: str, shape: tuple[int | None, ...]) -> torch.Tensor:
        """A tensor that is mapped: it stays in its file until it is used."""
        if name not in self.stored:
            raise KPruneError(f"{self.folder}: {name} is missing; use another model to rank")
        path, info = self.stored[name]
        fits = len(info.shape) == len(shape) and all(
            want in (None, got) for want, got in zip(shape, info.shape, strict=True)
        )
        if info.dtype not in _PLAIN or not fits:
            wanted = " x ".join("any" if size is None else str(size) for size in shape)
            raise KPruneError(
                f"{path}: {name} is {info.dtype}{list(info.shape)}; expected plain floating-point "
                f"numbers, {wanted}"
            )
        try:
            with safe_open(path, "pt") as file:
                tensor: torch.Tensor = file.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise KPruneError(f"{path} cannot be read: {error}") from None
        return tensor

    def matrix(self, name: str, heads: int) -> torch.Tensor:
        shape = (heads * self.config.head_dim, self.config.hidden_size)
        self.refuse_scales(name)
        return self.in_halves(self.tensor(f"{name}.weight", shape), heads).float()

    def refuse_scales(self, name: str) -> None:
        """Refuse a projection with scales: in block FP8, the weight itself looks plain."""
        for other in self.stored:
            if other.startswith(f"{name}.") and not other.endswith((".weight", ".bias")):
                raise KPruneError(
                    f"{self.folder}: {name} is quantised ({other}); use another model to rank"
                )

    def bias(self, name: str, heads: int) -> torch.Tensor | None:
        if not self.config.qk_bias:
            return None
        shape = (heads * self.config.head_dim,)
        return self.in_halves(self.tensor(f"{name}.bias", shape), heads).float()

    def qk_norm(self, name: str, heads: int) -> torch.Tensor | None:
        """Weights [dim], or [heads, dim] if each head has its own (Cohere)."""
        if not self.config.qk_norm:
            return None
        dim = self.config.head_dim
        if self.config.norm == "layer":
            # Each weight belongs to a dimension, so these are reordered like the projections.
            return self.in_halves(self.tensor(f"{name}.weight", (heads, dim)), heads).float()
        weight = self.tensor(f"{name}.weight", (dim,)).float()
        return weight + 1.0 if self.config.norm == "rms_plus_one" else weight.clone()

    def in_halves(self, tensor: torch.Tensor, heads: int) -> torch.Tensor:
        """A copy with rotary dimensions in halves.

        Cohere interleaves the pairs that are rotated together: of 4 dimensions, (0, 1) and (2, 3).
        Elsewhere they are (0, 2) and (1, 3), so the dimensions become 0, 2, 1, 3. Products of
        queries and keys do not depend on the order, as both are reordered alike.
        """
        if not self.config.interleaved:
            return tensor.clone()
        # [heads, dim / 2, 2, …] to [heads, 2, dim / 2, …]: rows 0 1 2 3 of a head become 0 2 1 3.
        rows = tensor.reshape(heads, self.config.head_dim // 2, 2, -1).transpose(1, 2)
        return rows.reshape(tensor.shape).clone()


def _frequencies(rope: Rope, dim: int) -> torch.Tensor:
    """Radians per position, [dim / 2], in float32 and in the same steps as transformers."""
    # 0, 2 / dim, 4 / dim, …: one frequency for each pair of dimensions, the fastest first.
    exponents = torch.arange(0, dim, 2, dtype=torch.float32) / dim
    plain: torch.Tensor = 1.0 / (rope.theta**exponents)
    if rope.scaling == "default":
        return plain
    if rope.scaling == "linear":
        return plain / rope.factor
    # Llama-3.1: waves longer than `low` are slowed by the factor, those shorter than `high` stay,
    # and between the two both are mixed.
    wavelength = 2 * math.pi / plain
    low = rope.original_positions / rope.low_freq_factor
    high = rope.original_positions / rope.high_freq_factor
    # 0 for a wavelength of `low`, 1 for one of `high`.
    smooth = (rope.original_positions / wavelength - rope.low_freq_factor) / (
        rope.high_freq_factor - rope.low_freq_factor
    )
    mixed = (1 - smooth) * plain / rope.factor + smooth * plain
    scaled = torch.where(wavelength > low, plain / rope.factor, plain)
    return torch.where((wavelength >= high) & (wavelength <= low), mixed, scaled)
