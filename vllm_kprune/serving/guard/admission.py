"""What is written into a request when a server, or an `LLM`, admits it.

Only the front end sees the whole request, and only the engine guards it. So the front end leaves a
mapping under `ADMITTED` in the `extra_args` of vLLM's own copy of the sampling parameters: answers
and what the caller gave do not change. Requests without it are vLLM's own, and are not counted.
"""

from collections.abc import Callable, Mapping
from typing import Any

from vllm_kprune.serving.guard.markers import Markers, end_of_answer
from vllm_kprune.serving.guard.prepared import unprepared
from vllm_kprune.serving.guard.settings import ResolvedEscapes
from vllm_kprune.serving.request_options import ADMITTED
from vllm_kprune.serving.settings import settings_of

__all__ = ["admit", "admitted", "note_tools", "to_prepare"]
_TOOLS, _ESCAPES = "tools", "escapes"


def note_tools(request: Any, params: Any) -> None:
    """Note in a request's parameters that it may be answered with tool calls, which are JSON."""
    if getattr(request, "tools", None) and getattr(request, "tool_choice", None) != "none":
        params.extra_args = {**(params.extra_args or {}), ADMITTED: {_TOOLS: True}}


def admit(config: Any, params: Any) -> None:
    """Mark a request that the engine of a `VllmConfig` is about to get; again is harmless.

    Raises `KPruneError` for policies that leave no token.
    """
    guard = settings_of(config).guard
    if not guard.attached:
        return
    if build := to_prepare(config, params):
        build()
    noted = {_TOOLS: _has_tools(params), _ESCAPES: _escapes(params)}
    params.extra_args = {**(params.extra_args or {}), ADMITTED: noted}
    if params.ignore_eos:
        rows = config.model_config.get_vocab_size()
        _let_end(params, end_of_answer(params, guard.markers or Markers(), rows))


def to_prepare(config: Any, params: Any) -> Callable[[], None] | None:
    """What would take `admit` long, for a thread to do before; None if there is nothing."""
    if not settings_of(config).guard.attached:
        return None
    return unprepared(config, params.extra_args, _escapes(params))


def admitted(params: Any) -> tuple[bool, ResolvedEscapes]:
    """Was a request admitted, and what does `escapes="auto"` mean for it?"""
    noted = (params.extra_args or {}).get(ADMITTED)
    is_json = isinstance(noted, Mapping) and noted.get(_ESCAPES) == "json"
    return noted is not None, "json" if is_json else "off"


def _has_tools(params: Any) -> bool:
    # Of a client it can only be a text, a number or a list (vLLM's `vllm_xargs`).
    noted = (params.extra_args or {}).get(ADMITTED)
    return isinstance(noted, Mapping) and bool(noted.get(_TOOLS))


def _escapes(params: Any) -> ResolvedEscapes:
    return "json" if _has_tools(params) or _is_json(params.structured_outputs) else "off"


def _is_json(outputs: Any) -> bool:
    # Structural tags are JSON schemas between tags.
    names = ("json", "json_object", "structural_tag")
    return outputs is not None and any(getattr(outputs, name, None) for name in names)


def _let_end(params: Any, end_id: int) -> None:
    """Let a dead end stop an answer though `ignore_eos` is set.

    Only where nothing else can produce the end token: a grammar allows it at its own end, and a
    list of allowed tokens does not have it.
    """
    listed = params.allowed_token_ids
    if params.structured_outputs or (listed and end_id not in listed):
        params.stop_token_ids = [*(params.stop_token_ids or ()), end_id]
