"""What the guard does for a request: its automaton, built once for each policy, and its end token.

Everything slow happens when the engine starts: what the tokens spell, and the automaton of the
default policies. Those of new policies in a request are read from kprune's cache (`prepared`).
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from vllm_kprune.errors import KPruneError
from vllm_kprune.guard.automaton import Automaton
from vllm_kprune.guard.stored import AutomatonSpec, stored_automaton
from vllm_kprune.serving.compat import logger
from vllm_kprune.serving.guard.admission import admitted
from vllm_kprune.serving.guard.attach import engine_markers, engine_spellings
from vllm_kprune.serving.guard.markers import end_of_answer
from vllm_kprune.serving.guard.prepared import automaton_spec, guard_cache
from vllm_kprune.serving.guard.settings import Policies, request_policies
from vllm_kprune.serving.settings import settings_of

__all__ = ["Guards", "RequestGuard"]

# A policy is the client's choice, and each has tables of its own.
_MAX_POLICIES = 16


@dataclass(frozen=True)
class RequestGuard:
    """`end_id` ends an answer for which no token is left; only `constrained` requests need it.

    A request is constrained when something besides the guard refuses tokens too. One that is not
    `counted` is no client's: vLLM's warm-up.
    """

    automaton: Automaton
    end_id: int
    constrained: bool
    counted: bool = True


class Guards:
    """The automata of an engine; beyond 16, the least recently used ones are dropped."""

    def __init__(self, config: Any, num_rows: int) -> None:
        self._settings = settings_of(config).guard
        self._spellings = engine_spellings(config)
        self._markers = engine_markers(config)
        self._num_rows = num_rows
        self._forget: Callable[[Automaton], None] = lambda automaton: None
        self._automata: OrderedDict[AutomatonSpec, Automaton] = OrderedDict()
        self._default = self._spec(self._settings.policies.resolved("off"))
        if self._default:
            self._automaton(self._default, ())

    def when_given_up(self, forget: Callable[[Automaton], None]) -> None:
        """Call `forget(automaton)` for each automaton that is dropped; no request uses it then."""
        self._forget = forget

    def of_request(self, params: Any, in_use: Iterable[Automaton]) -> RequestGuard | None:
        """The guard of a request with these `SamplingParams`; None if it has none."""
        try:
            policies = request_policies(self._settings, params.extra_args)
        except KPruneError as error:  # an API server refuses it, but this one came another way
            logger.warning("kprune: the default guard is used: %s", error)
            policies = self._settings.policies
        counted, escapes = admitted(params)
        spec = self._spec(policies.resolved(escapes))
        if spec is None:
            return None
        # Only then can a row lose its last token. Alone, the guard has no dead ends (see
        # `guard.automaton`), but what it leaves need not be what a grammar leaves.
        constrained = any(
            (params.structured_outputs, params.allowed_token_ids, params.bad_words_token_ids)
        )
        end_id = end_of_answer(params, self._markers, self._num_rows)
        return RequestGuard(self._automaton(spec, in_use), end_id, constrained, counted)

    def _spec(self, policies: Policies) -> AutomatonSpec | None:
        return automaton_spec(policies, self._markers, self._num_rows)

    def _automaton(self, spec: AutomatonSpec, in_use: Iterable[Automaton]) -> Automaton:
        if spec not in self._automata:
            self._give_up(in_use)
            self._automata[spec] = stored_automaton(self._spellings, spec, guard_cache())
        self._automata.move_to_end(spec)
        return self._automata[spec]

    def _give_up(self, in_use: Iterable[Automaton]) -> None:
        # If all are in use, the limit gives way: a running request must keep its automaton.
        kept = {id(automaton) for automaton in in_use}
        # In order of last use. `move_to_end` keeps it so.
        for spec, automaton in list(self._automata.items()):
            if len(self._automata) < _MAX_POLICIES:
                return
            if id(automaton) not in kept and spec != self._default:
                self._forget(self._automata.pop(spec))
