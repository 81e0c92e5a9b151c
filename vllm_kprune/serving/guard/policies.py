"""The automaton of a request's policies, from a file of kprune's cache if it has been built before.

To build one takes longer than a decode step, so a worker should only read it. The front end makes
the file when it admits a request with policies that it has not seen. Where the file does not reach
the worker (another machine, a cache that cannot be written), the worker builds it itself.
"""

from collections import OrderedDict
from threading import Lock
from typing import Any

from vllm_kprune.guard.automaton import Automaton
from vllm_kprune.guard.spelling import TokenSpellings
from vllm_kprune.guard.stored import AutomatonSpec, stored_automaton
from vllm_kprune.serving.guard.attach import engine_markers, engine_spellings
from vllm_kprune.serving.guard.markers import Markers
from vllm_kprune.serving.guard.settings import Policies
from vllm_kprune.storage.cache import cache_dir

__all__ = ["is_prepared", "load_automaton", "prepare"]

# Policies are the clients' choice. What is remembered of each is small.
_MOST_REMEMBERED = 64


def load_automaton(
    spellings: TokenSpellings, policies: Policies, markers: Markers, num_rows: int
) -> Automaton:
    """The automaton of policies that guard something. Raises `KPruneError` if no token is left."""
    spec = AutomatonSpec(
        policy=policies.answer,
        num_rows=num_rows,
        control_ids=(*markers.stop_ids, *markers.control_ids),
        reasoning=policies.reasoning if markers.reasoning else None,
        tokens=markers.reasoning,
    )
    return stored_automaton(spellings, spec, cache_dir() / "guard")


class _Files:
    """What the front end of an engine has made files for; any thread may ask."""

    def __init__(self, config: Any) -> None:
        self._spellings = engine_spellings(config)
        self._markers = engine_markers(config)
        self._num_rows = config.model_config.get_vocab_size()
        self._made: OrderedDict[Policies, None] = OrderedDict()

    def make(self, policies: Policies) -> None:
        if policies not in self:
            load_automaton(self._spellings, policies, self._markers, self._num_rows)
            self._made[policies] = None
            while len(self._made) > _MOST_REMEMBERED:
                self._made.popitem(last=False)

    def __contains__(self, policies: Policies) -> bool:
        guarded = policies.answer or (policies.reasoning and self._markers.reasoning)
        return not guarded or policies in self._made


def is_prepared(config: Any, policies: Policies) -> bool:
    """Is there nothing to do for these policies before the engine of a `VllmConfig` gets them?"""
    files = _engines.get(_key(config))
    return not policies.guard or (files is not None and policies in files)


def prepare(config: Any, policies: Policies) -> None:
    """Make the file of these policies, once. Raises `KPruneError` if they leave no token."""
    # Two at once would not be done sooner, and may be the same.
    with _lock:
        key = _key(config)
        if key not in _engines:
            _engines[key] = _Files(config)
        _engines[key].make(policies)


def _key(config: Any) -> Any:
    model = config.model_config
    return model.tokenizer, model.tokenizer_revision, engine_markers(config)


_engines: dict[Any, _Files] = {}
_lock = Lock()
