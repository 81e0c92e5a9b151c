"""Where kprune meets vLLM's API servers: checks of requests, metrics, reasons of failures.

The guard itself is a logits processor of the engine (`processor`, added by `attach`). Like all of
`register()`, this imports nothing heavy and does nothing for a server that did not ask for kprune.
"""

import os
from collections.abc import Awaitable, Callable
from typing import Any

from vllm_kprune.serving.compat import requests, seams_requests
from vllm_kprune.serving.compat.installer import Wraps
from vllm_kprune.serving.environment import COUNTER_FOLDER, HEAD_PROFILES
from vllm_kprune.serving.guard.runner_hooks import runner_wraps
from vllm_kprune.serving.options import PREFIX

__all__ = ["guard_wraps"]


def guard_wraps() -> Wraps:
    """What the guard puts around vLLM's handling of requests."""
    return {
        **requests.check_requests(_check_request),
        **requests.check_beam_searches(_check_beam_search),
        **requests.check_beam_options(_check_beam_options),
        **requests.admit_requests(_admit),
        **requests.prepare_requests(_to_prepare),
        **requests.note_requests(_note_tools),
        **requests.explain_failures(_explain_failure),
        seams_requests.REGISTRY: _registry,
        **runner_wraps(),
    }


def _check_request(config: Any, extra_args: Any) -> None:
    # The cheap question first: a request without `kprune_` keys costs a look at its keys. Unknown
    # keys with the prefix count too, so that a typo is refused and not ignored.
    if _asks(extra_args):
        from vllm_kprune.serving.guard.attach import check_request

        check_request(config, extra_args)


def _check_beam_search(config: Any) -> None:
    if _is_guarded():
        from vllm_kprune.serving.guard.attach import check_beam_search

        check_beam_search(config)


def _check_beam_options(extra_args: Any) -> None:
    if (_is_guarded() or HEAD_PROFILES in os.environ) and _asks(extra_args):
        from vllm_kprune.serving.guard.attach import refuse_beam_options

        refuse_beam_options(extra_args)


def _admit(config: Any, params: Any) -> None:
    if HEAD_PROFILES in os.environ:
        from vllm_kprune.serving.head.counts import count_request

        count_request(params.extra_args)
    if _is_guarded():
        from vllm_kprune.serving.guard.admission import admit

        admit(config, params)


def _to_prepare(config: Any, params: Any) -> Awaitable[None] | None:
    if not _is_guarded():
        return None
    from vllm_kprune.serving.guard.admission import to_prepare

    if (build := to_prepare(config, params)) is None:
        return None
    from vllm_kprune.serving.guard.prepared import in_turn

    return in_turn(build)


def _note_tools(request: Any, params: Any) -> None:
    if _is_guarded():
        from vllm_kprune.serving.guard.admission import note_tools

        note_tools(request, params)


def _registry(original: Callable[..., Any]) -> Any:
    registry = original()
    if HEAD_PROFILES in os.environ:
        from vllm_kprune.serving.head.counts import show_requests

        show_requests()
    if _is_guarded():
        from vllm_kprune.serving.guard.metrics import show_counts

        show_counts(registry)
    return registry


def _explain_failure() -> str | None:
    if not _is_guarded():
        return None
    from vllm_kprune.serving.counter_files import counter_folder
    from vllm_kprune.serving.guard.counters import explain_dead_end

    return explain_dead_end(counter_folder())


def _asks(extra_args: Any) -> bool:
    return any(isinstance(key, str) and key.startswith(PREFIX) for key in extra_args or ())


def _is_guarded() -> bool:
    """Does this server have a guard, or count token usage? Then its counters have a folder."""
    # `ensure_folder` sets it in the process that starts the server; children inherit it.
    return COUNTER_FOLDER in os.environ
