"""Runs of `sparsify_model` on small models."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.small_runs import one_thread, own_cache, saved, shared_cache, text, unsynced
from support.sparsify_cases import Sparsified, small_options

from vllm_kprune.sparsify.run import sparsify_model

__all__ = ["one_thread", "own_cache", "saved", "shared_cache", "text", "unsynced"]


@pytest.fixture
def sparsified(saved: Callable[[str], Path], text: Path, tmp_path: Path) -> Sparsified:
    """A function that sparsifies a tiny architecture; gives the new folder and its record."""

    def run(name: str, method: str, **options: Any) -> tuple[Path, dict[str, Any]]:
        output = tmp_path / f"sparse-{len(list(tmp_path.iterdir()))}"
        return output, sparsify_model(saved(name), output, small_options(method, text, **options))

    return run
