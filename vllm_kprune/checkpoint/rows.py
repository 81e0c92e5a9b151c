"""Gather the kept rows of vocabulary tensors: all that pruning does to weights.

Works on a stream of (name, tensor), so that memory is bounded by one tensor, and on any data type,
bit for bit. vLLM's loader brings its own stream; `read_pruned_weights` reads a folder.
"""

import logging
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from safetensors import safe_open

from vllm_kprune.checkpoint.manifest import Manifest
from vllm_kprune.errors import KPruneError

__all__ = ["gather_rows", "prune_weights", "read_pruned_weights"]

logger = logging.getLogger("vllm.kprune")


def prune_weights(
    weights: Iterable[tuple[str, torch.Tensor]], manifest: Manifest
) -> Iterator[tuple[str, torch.Tensor]]:
    """Cut the manifest's vocabulary tensors to the kept rows; pass all others through.

    Raises `KPruneError` if a vocabulary tensor does not have the recorded number of rows, or is
    missing from the stream.
    """
    # vLLM loads under its target device as the default; tensors of the stream are on the CPU.
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
    # Known only at the end of the stream: nothing says beforehand what it will hold.
    if missing:
        raise KPruneError(
            f"the base model holds no {', '.join(sorted(missing))}, which the overlay prunes; "
            "build the overlay again"
        )
    logger.info(
        "kprune: kept %d of %d vocabulary rows (profile %s), saving %.1f MiB",
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
            f"{name} has shape {list(tensor.shape)}, but the overlay was built for {original_rows} "
            "rows; build the overlay again"
        )
    rows = rows.to(tensor.device)
    if tensor.element_size() > 1:
        return tensor.index_select(0, rows)
    # PyTorch cannot gather rows of float8, but it can gather the same rows as bytes.
    kept = tensor.view(torch.uint8).index_select(0, rows)
    return kept.view(tensor.dtype)


def read_pruned_weights(
    manifest: Manifest, base: Path | None = None
) -> Iterator[tuple[str, torch.Tensor]]:
    """(name, tensor) of all weights of an overlay, one at a time. Checks the base folder first."""
    yield from prune_weights(_read_weights(manifest, manifest.check_base(base)), manifest)


def _read_weights(manifest: Manifest, base: Path) -> Iterator[tuple[str, torch.Tensor]]:
    for shard in manifest.weight_files:
        with safe_open(base / shard, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - not a dict
                yield name, file.get_tensor(name)
