"""Load format `kprune`: the base weights, with only the kept rows of the vocabulary tensors.

The overlay has no weights. vLLM's own safetensors reader streams the base, and the tensors that the
manifest names are cut on the way, straight from the memory-mapped file, so that the whole embedding
is never in memory. Everything after that (tensor parallel shards, tied heads, quantised layers) is
vLLM's default loader, unchanged. A draft model is loaded in the same format as the model that it
drafts for: it is an overlay too, or a checkpoint that `kprune export` made. Imported only where the
seam table's loader names fit.
"""

from collections.abc import Generator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from vllm.model_executor.model_loader import DefaultModelLoader, register_model_loader

from vllm_kprune.checkpoint.manifest import is_overlay, load_manifest
from vllm_kprune.checkpoint.rows import prune_weights
from vllm_kprune.serving.activation import LOAD_FORMAT
from vllm_kprune.serving.compat.engine import stream_weights

__all__ = ["KPruneModelLoader"]


# Importing this module is what makes the format known; `plugin._register_loader` does no more.
@register_model_loader(LOAD_FORMAT)
class KPruneModelLoader(DefaultModelLoader):
    """Reads the base weights of an overlay; `model_config.model` is the overlay's folder."""

    def __init__(self, load_config: Any) -> None:
        """Read safetensors whatever the format is called; `load_config` is a `LoadConfig`."""
        super().__init__(replace(load_config, load_format="safetensors"))

    def download_model(self, model_config: Any) -> None:
        """Nothing to download for an overlay: its base was checked on disk before this."""
        if not is_overlay(model_config.model):
            super().download_model(model_config)

    def get_all_weights(
        self, model_config: Any, model: torch.nn.Module
    ) -> Generator[tuple[str, torch.Tensor], None, None]:
        """Every weight of the base, vocabulary tensors cut to the kept rows."""
        if not is_overlay(model_config.model):
            yield from super().get_all_weights(model_config, model)
            return
        manifest = load_manifest(Path(model_config.model))
        base = manifest.check_base(_folder(model_config))
        # One tensor at a time. A list would hold the whole base in memory.
        yield from prune_weights(stream_weights(self, base, model), manifest)


def _folder(model_config: Any) -> Path | None:
    weights = model_config.model_weights
    return Path(weights) if weights else None
