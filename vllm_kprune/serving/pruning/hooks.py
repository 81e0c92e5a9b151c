"""Where input pruning meets vLLM; a server that did not ask for kprune pays one look-up.

As in `guard.hooks`, nothing heavy is imported before a server or a prompt needs it.
"""

from typing import Any

from vllm_kprune.serving.compat import prompts
from vllm_kprune.serving.compat.installer import Wraps

__all__ = ["pruner_wraps", "pruning_of"]


def pruner_wraps() -> Wraps:
    """What input pruning puts around the ways of prompts through vLLM."""
    return {**prompts.prune_online(pruning_of), **prompts.prune_offline(pruning_of)}


def pruning_of(renderer: Any) -> Any:
    """The `PromptPruning` of a renderer, loaded at first use; None if nobody asked for kprune."""
    return prompts.attached(renderer, _make)


def _make(renderer: Any) -> Any:
    from vllm_kprune.serving.settings import settings_of

    if not settings_of(renderer.config).asks_for_kprune:
        return None
    from vllm_kprune.serving.pruning.service import make_pruning

    return make_pruning(renderer)
