"""Which automaton guards a request, and how it is ready before the request reaches a worker.

A new policy takes 20 to 60 ms to build; in a worker, all requests of the engine would wait for it.
So the front end builds it when it admits the first request that needs it and leaves it in kprune's
cache, from where workers read it in a few milliseconds. A worker that finds none there (another
machine, a read-only cache) builds it.

Clients choose policies, so each request can bring a new one. They are built in a thread of their
own, one after the other, and few may wait: whoever sends many delays nobody else's known policies,
nor what vLLM does in its own threads.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache, partial
from pathlib import Path
from threading import Lock
from typing import Any

from vllm_kprune.guard.spelling import TokenSpellings, load_spellings
from vllm_kprune.guard.stored import AutomatonSpec, keep_automaton
from vllm_kprune.serving.compat.prompts import server_error
from vllm_kprune.serving.guard.attach import engine_markers, tokenizer_folder
from vllm_kprune.serving.guard.markers import Markers
from vllm_kprune.serving.guard.settings import Policies, ResolvedEscapes, request_policies
from vllm_kprune.serving.settings import settings_of
from vllm_kprune.storage.cache import cache_dir

__all__ = ["automaton_spec", "guard_cache", "in_turn", "unprepared"]

# As many as there are files.
_MOST_REMEMBERED = 64
_MOST_WAITING = 16  # each takes up to 90 ms


def automaton_spec(policies: Policies, markers: Markers, num_rows: int) -> AutomatonSpec | None:
    """What guards a request with these policies; None if nothing does."""
    # Reasoning that cannot be told from the answer is not guarded on its own.
    reasoning = policies.reasoning if markers.reasoning else None
    if policies.answer is None and reasoning is None:
        return None
    controls = (*markers.stop_ids, *markers.control_ids)
    return AutomatonSpec(policies.answer, num_rows, controls, reasoning, markers.reasoning)


def unprepared(config: Any, extra_args: Any, escapes: ResolvedEscapes) -> Callable[[], None] | None:
    """What builds the guard of a request of a `VllmConfig`'s engine; None if it is in the cache.

    It may run in any thread, and raises `KPruneError` for policies that leave no token.
    """
    guard = settings_of(config).guard
    policies = request_policies(guard, extra_args).resolved(escapes)
    # The worker has built the default at its start.
    if policies == guard.policies.resolved("off"):
        return None
    model, rows = config.model_config, config.model_config.get_vocab_size()
    spec = automaton_spec(policies, engine_markers(config), rows)
    if spec is None:
        return None
    key = model.tokenizer, model.tokenizer_revision, guard_cache(), spec
    return None if key in _kept else partial(_keep, *key)


async def in_turn(build: Callable[[], None]) -> None:
    """Run `build` in the thread that builds guards; HTTP 503 if too many wait for it already."""
    if len(_waiting) >= _MOST_WAITING:
        raise server_error(
            f"{len(_waiting)} requests wait for guards that nobody has asked for before; try again",
            busy=True,
        )
    future: Future[None] = _builder().submit(build)
    _waiting.add(future)
    future.add_done_callback(_waiting.discard)
    # A caller that leaves cancels it, if it has not begun.
    await asyncio.wrap_future(future)


@lru_cache(maxsize=1)
def _builder() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, "kprune-guard")


_waiting: set[Future[None]] = set()


def guard_cache() -> Path:
    """Where spellings and automatons are kept."""
    return cache_dir() / "guard"


# Policies that this process has looked for: it does so once.
_kept: OrderedDict[Any, None] = OrderedDict()
_lock = Lock()


def _keep(tokenizer: str, revision: str | None, cache: Path, spec: AutomatonSpec) -> None:
    key = tokenizer, revision, cache, spec
    # Two at once would not be done sooner, and are often the same.
    with _lock:
        if key in _kept:
            return
        keep_automaton(_spellings(tokenizer, revision, cache), spec, cache)
        _kept[key] = None
        if len(_kept) > _MOST_REMEMBERED:
            _kept.popitem(last=False)


@lru_cache(maxsize=1)
def _spellings(tokenizer: str, revision: str | None, cache: Path) -> TokenSpellings:
    return load_spellings(tokenizer_folder(tokenizer, revision), cache)
