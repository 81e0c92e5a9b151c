"""Where the guard meets vLLM's API servers: requests are checked, metrics and failures explained.

The guard itself is a logits processor of the engine (`processor`, added by `attach`). Like all of
`register()`, this imports nothing heavy, and does nothing for a server that did not ask for kprune.
"""

import os
from collections.abc import Callable
from types import ModuleType
from typing import Any

from vllm_kprune.serving import compat
from vllm_kprune.serving.options import COUNTER_FOLDER, PREFIX

__all__ = ["hook_guard"]


def hook_guard() -> None:
    """Hook into those parts of vLLM that are imported already, and the others when they are."""
    compat.when_imported("vllm.v1.engine.input_processor", _hook_requests)
    compat.when_imported("vllm.entrypoints.serve.instrumentator.metrics", _hook_metrics)
    compat.when_imported("vllm.entrypoints.generate.base.serving", _hook_failures)
    for protocol in ("completion", "chat_completion"):
        compat.when_imported(f"vllm.entrypoints.openai.{protocol}.protocol", _hook_beam_options)


def _hook_requests(module: ModuleType) -> None:
    compat.check_requests(module, _check_request)
    compat.check_beam_searches(module, _check_beam_search)


def _hook_metrics(module: ModuleType) -> None:
    compat.wrap(module, "get_prometheus_registry", _registry)


def _hook_failures(module: ModuleType) -> None:
    compat.explain_failures(module, _explain_failure)


def _hook_beam_options(module: ModuleType) -> None:
    compat.check_beam_options(module, _check_beam_options)


def _check_request(config: Any, extra_args: Any) -> None:
    if _asks(extra_args):
        from vllm_kprune.serving.guard.attach import check_request

        check_request(config, extra_args)


def _check_beam_search(config: Any) -> None:
    if _is_guarded():
        from vllm_kprune.serving.guard.attach import check_beam_search

        check_beam_search(config)


def _check_beam_options(extra_args: Any) -> None:
    if _is_guarded() and _asks(extra_args):
        from vllm_kprune.serving.guard.attach import refuse_beam_options

        refuse_beam_options(extra_args)


def _registry(original: Callable[..., Any]) -> Any:
    registry = original()
    if _is_guarded():
        from vllm_kprune.serving.guard.metrics import show_counts

        show_counts(registry)
    return registry


def _explain_failure() -> str | None:
    if not _is_guarded():
        return None
    from vllm_kprune.serving.guard.counters import counter_folder, explain_dead_end

    return explain_dead_end(counter_folder())


def _asks(extra_args: Any) -> bool:
    return any(isinstance(key, str) and key.startswith(PREFIX) for key in extra_args or ())


def _is_guarded() -> bool:
    """Does this server have a guard? Then its counters have a folder."""
    return COUNTER_FOLDER in os.environ
