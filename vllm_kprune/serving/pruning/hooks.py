"""Where input pruning meets vLLM; a server that did not ask for kprune pays one look-up.

As `guard.hooks`: nothing heavy is imported until a prompt of such a server comes, or its server
starts.
"""

from collections.abc import Callable
from types import ModuleType
from typing import Any

from vllm_kprune.serving import compat

__all__ = ["hook_pruner", "pruning_of"]


def hook_pruner() -> None:
    """Hook into those parts of vLLM that are imported already, and the others when they are."""
    compat.when_imported("vllm.renderers.online_renderer", _hook_server)
    compat.when_imported("vllm.entrypoints.common.offline", _hook_offline)
    compat.when_imported("vllm.entrypoints.generate.beam_search.offline", _hook_beams)


def pruning_of(renderer: Any) -> Any:
    """What prunes a renderer's prompts, loaded at first; None if nobody asked for kprune."""
    from vllm_kprune.serving.compat import prompts as compat_prompt

    return compat_prompt.attached(renderer, _make)


def _make(renderer: Any) -> Any:
    from vllm_kprune.serving.settings import settings_of

    if not settings_of(renderer.config).asks_for_kprune:
        return None
    from vllm_kprune.serving.pruning.service import make_pruning

    return make_pruning(renderer)


def _hook_server(module: ModuleType) -> None:
    from vllm_kprune.serving.compat.prompts import prune_online

    _hook(prune_online, module)


def _hook_offline(module: ModuleType) -> None:
    from vllm_kprune.serving.compat.prompts import prune_offline

    _hook(prune_offline, module)


def _hook_beams(module: ModuleType) -> None:
    from vllm_kprune.serving.compat.prompts import prune_offline_beams

    _hook(prune_offline_beams, module)


def _hook(into: Callable[[ModuleType, Callable[[Any], Any]], None], module: ModuleType) -> None:
    try:
        into(module, pruning_of)
    except AttributeError as error:  # an untested vLLM; an unrelated server must not stop for it
        compat.logger.warning("kprune: input pruning is off: %s", error)
