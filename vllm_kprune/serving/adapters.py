"""LoRA adapters on a pruned model: those that touch the vocabulary are refused, others pass.

vLLM would load such an adapter with the wrong rows, or silently skip parts of it. The check runs in
the front-end process, before a bad adapter can stop the engine.
"""

from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

from vllm_kprune.checkpoint.adapters import check_adapter
from vllm_kprune.serving.compat.engine import adapter_folder
from vllm_kprune.serving.settings import settings_of

__all__ = ["check_served_adapter", "check_static_adapters"]


def check_served_adapter(config: Any, adapter: str) -> None:
    """Raise `KPruneError` if the served model is pruned and the adapter does not fit.

    `config` is the server's `VllmConfig`, `adapter` a folder or a hub id.
    """
    settings = settings_of(config)
    if settings.overlay or settings.vocabulary.head:
        _check_once(adapter)


def check_static_adapters(adapters: Iterable[str]) -> None:
    """Check those adapters of `--lora-modules` that are on disk, before anything starts."""
    for adapter in adapters:
        folder = Path(adapter).expanduser()
        if folder.is_dir():
            check_adapter(folder)


@lru_cache(maxsize=1024)
def _check_once(adapter: str) -> None:
    """Every request names its adapter, so one that passed is not read again."""
    check_adapter(adapter_folder(adapter))
