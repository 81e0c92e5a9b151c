"""Where token usage meets vLLM: when an engine is configured, and when an answer ends.

A server that did not ask for it pays a look into the environment for each answer.
"""

import os
from pathlib import Path
from typing import Any

from vllm_kprune.serving.compat import requests
from vllm_kprune.serving.compat.installer import Wraps
from vllm_kprune.serving.environment import USAGE_ROWS

__all__ = ["start_counting", "tokenizer_file", "usage_wraps"]

# On what the answers of one request share: the ids that they have so far.
_SEEN = "_kprune_seen"


def usage_wraps() -> Wraps:
    """What token usage puts around vLLM's handling of answers."""
    return requests.count_answers(lambda: USAGE_ROWS in os.environ, _count)


def start_counting(config: Any) -> None:
    """Let this process, and those that it starts, count the answers of a `VllmConfig`.

    Raises `KPruneError` for a tokenizer without `tokenizer.json`.
    """
    from vllm_kprune.serving.counter_files import ensure_folder

    tokenizer_file(config)
    ensure_folder()
    os.environ[USAGE_ROWS] = str(config.model_config.get_vocab_size())


def tokenizer_file(config: Any) -> Path:
    """The `tokenizer.json` whose ids a `VllmConfig` answers with."""
    from vllm_kprune.checkpoint.model_folder import resolve_model
    from vllm_kprune.errors import KPruneError

    model = config.model_config
    folder = resolve_model(model.tokenizer, model.tokenizer_revision, weights=False)
    if not (path := folder / "tokenizer.json").is_file():
        raise KPruneError(f"--kprune-usage: {folder} has no tokenizer.json, whose ids are counted")
    return path


def _count(ids: list[int], request: Any) -> None:
    from vllm_kprune.serving.usage.counts import process_counts

    if counts := process_counts():
        # On vLLM's own object, so that it goes when the request does.
        earlier = None if request is None else request.__dict__.setdefault(_SEEN, set())
        counts.add(ids, earlier)
