"""Runs of `sparsify_model` on small models: options, and what they give."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from vllm_kprune.sparsify.options import SparsifyOptions

# Enough for matrices of 64 inputs: 144 tokens.
SMALL = {"samples": 6, "length": 24}

# From a tiny architecture and a method: the new folder, and its record.
Sparsified = Callable[..., tuple[Path, dict[str, Any]]]


def small_options(method: str, text: Path, **options: Any) -> SparsifyOptions:
    """Options for a small run on the CPU."""
    if method != "magnitude":
        options = {**SMALL, "calibration": (str(text),), **options}
    return SparsifyOptions(method=method, device="cpu", **options)  # type: ignore[arg-type]
