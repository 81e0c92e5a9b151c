"""Load format `kprune`: the base weights, with only the kept rows of the vocabulary tensors.

The overlay holds no weights. vLLM's own safetensors reader streams the base; the tensors that the
manifest names are cut down on their way, straight from the memory-mapped file, so that the whole
embedding is never in memory. Everything after that (tensor parallel shards, tied heads, quantised
layers) is vLLM's default loader, unchanged.
"""

import logging
from collections.abc import Generator, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from vllm.config import ModelConfig
from vllm.config.load import LoadConfig
from vllm.model_executor.model_loader import DefaultModelLoader, register_model_loader

from vllm_kprune.checkpoint.manifest import Manifest, load_manifest
from vllm_kprune.errors import KPruneError
from vllm_kprune.serving.activation import LOAD_FORMAT
from vllm_kprune.serving.compat import stream_weights

__all__ = ["KPruneModelLoader", "gather_rows", "prune_weights"]

logger = logging.getLogger("vllm.kprune")


@register_model_loader(LOAD_FORMAT)
class KPruneModelLoader(DefaultModelLoader):
    """Reads the base weights of an overlay; `model_config.model` is the overlay's folder."""

    def __init__(self, load_config: LoadConfig) -> None:
        super().__init__(replace(load_config, load_format="safetensors"))

    def download_model(self, model_config: ModelConfig) -> None:
        """Nothing to download: the base is on disk, checked when the engine was configured."""

    def get_all_weights(
        self, model_config: ModelConfig, model: torch.nn.Module
    ) -> Generator[tuple[str, torch.Tensor], None, None]:
        """Every weight of the base, vocabulary tensors cut to the kept rows."""
        manifest = load_manifest(Path(model_config.model))
        base = manifest.check_base(_folder(model_config))
        _refuse_unlisted(base, manifest)
        yield from prune_weights(stream_weights(self, base, model), manifest)


def prune_weights(
    weights: Iterable[tuple[str, torch.Tensor]], manifest: Manifest
) -> Iterator[tuple[str, torch.Tensor]]:
    """Cut the manifest's vocabulary tensors to the kept rows; pass all others through.

    Raises `KPruneError` when a vocabulary tensor has not the recorded number of rows, or never
    came.
    """
    rows = torch.tensor(manifest.kept_rows, dtype=torch.int64, device="cpu")
    missing = set(manifest.vocabulary_tensors)
    saved = 0
    for name, tensor in weights:
        if name in missing:
            missing.remove(name)
            whole = tensor.nbytes
            tensor = gather_rows(name, tensor, rows, manifest.original_rows)
            saved += whole - tensor.nbytes
        yield name, tensor
    if missing:
        raise KPruneError(
            f"the base model holds no {', '.join(sorted(missing))}, which the overlay prunes; "
            "build the overlay again"
        )
    logger.info(
        "kprune: kept %d of %d vocabulary rows (profile %s), %.1f MiB less to hold",
        len(rows),
        manifest.original_rows,
        manifest.profile.name,
        saved / 2**20,
    )


def gather_rows(
    name: str, tensor: torch.Tensor, rows: torch.Tensor, original_rows: int
) -> torch.Tensor:
    """`tensor[rows]`, bit for bit, for any dtype; dimension 0 must have `original_rows`."""
    if tensor.ndim == 0 or tensor.shape[0] != original_rows:
        raise KPruneError(
            f"{name} has shape {list(tensor.shape)}, the overlay was built for {original_rows} "
            "rows; build the overlay again"
        )
    rows = rows.to(tensor.device)
    if tensor.element_size() > 1:
        return tensor.index_select(0, rows)
    # PyTorch gathers no float8; as bytes it does, and bytes are all that matters here.
    kept = tensor.view(torch.uint8).index_select(0, rows)
    return kept.view(tensor.dtype)


def _folder(model_config: ModelConfig) -> Path | None:
    weights: Any = model_config.model_weights
    return Path(weights) if weights else None


def _refuse_unlisted(base: Path, manifest: Manifest) -> None:
    """Without an index vLLM reads every *.safetensors file: a new one would be loaded unseen."""
    if (base / "model.safetensors.index.json").is_file():
        return
    found = {path.name for path in base.glob("*.safetensors")}
    if extra := sorted(found - set(manifest.base.files)):
        raise KPruneError(
            f"{base / extra[0]} was not there when the overlay was built; move it away, "
            "or build the overlay again"
        )
