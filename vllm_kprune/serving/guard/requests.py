"""What the guard does for a request: its automaton, built once for each policy, and its end token.

Everything slow happens when the engine starts: what the tokens spell, and the default policy's
automaton. A new policy in a request costs its automaton once.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from vllm_kprune.errors import KPruneError
from vllm_kprune.guard.automaton import Automaton, build_automaton
from vllm_kprune.guard.policy import GuardPolicy
from vllm_kprune.serving.compat import logger
from vllm_kprune.serving.guard.attach import engine_spellings
from vllm_kprune.serving.guard.settings import request_policy
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
        self._stop_ids = _stop_ids(config.model_config)
        self._num_rows = num_rows
        self._forget: Callable[[Automaton], None] = lambda automaton: None
        self._automata: OrderedDict[GuardPolicy, Automaton] = OrderedDict()
        if self._settings.default:
            self._automaton(self._settings.default, ())

    def when_given_up(self, forget: Callable[[Automaton], None]) -> None:
        """Call `forget(automaton)` for each automaton that is dropped; no request uses it then."""
        self._forget = forget

    def of_request(self, params: Any, in_use: Iterable[Automaton]) -> RequestGuard | None:
        """The guard of a request with these `SamplingParams`; None if it has none."""
        try:
            policy = request_policy(self._settings, params.extra_args)
        except KPruneError as error:  # an API server refuses it, but this one came another way
            logger.warning("kprune: the default guard is used: %s", error)
            policy = self._settings.default
        if policy is None:
            return None
        # Only then can a row lose its last token. Alone, the guard has no dead ends (see
        # `guard.automaton`), but what it leaves need not be what a grammar leaves.
        constrained = any(
            (params.structured_outputs, params.allowed_token_ids, params.bad_words_token_ids)
        )
        return RequestGuard(self._automaton(policy, in_use), self._end_id(params), constrained)

    def _automaton(self, policy: GuardPolicy, in_use: Iterable[Automaton]) -> Automaton:
        if policy not in self._automata:
            self._give_up(in_use)
            self._automata[policy] = build_automaton(
                self._spellings, policy, self._num_rows, self._stop_ids
            )
        self._automata.move_to_end(policy)
        return self._automata[policy]

    def _give_up(self, in_use: Iterable[Automaton]) -> None:
        if len(self._automata) < _MAX_POLICIES:
            return
        # If all are in use, the limit gives way: a running request must keep its automaton.
        kept = {id(automaton) for automaton in in_use}
        # In order of last use. `move_to_end` keeps it so.
        for policy, automaton in list(self._automata.items()):
            if id(automaton) not in kept and policy != self._settings.default:
                self._forget(self._automata.pop(policy))
                return

    def _end_id(self, params: Any) -> int:
        # The request's own end first. Sorted, because all ranks must choose the same one and a set
        # has no order. 0 is always a row, so that `next` finds something.
        ids = (params.eos_token_id, *sorted(params.all_stop_token_ids), *self._stop_ids, 0)
        return next(i for i in ids if i is not None and 0 <= i < self._num_rows)


def _stop_ids(model_config: Any) -> tuple[int, ...]:
    """End-of-text ids of a `ModelConfig`, from its two files, each once."""
    # A dict as an ordered set. `eos_token_id` may be an id, a list of ids or absent in either file.
    found: dict[int, None] = {}
    hf_config = model_config.hf_text_config
    for ids in (
        getattr(hf_config, "eos_token_id", None),
        model_config.try_get_generation_config().get("eos_token_id"),
    ):
        found |= dict.fromkeys(
            i for i in (ids if isinstance(ids, list) else [ids]) if i is not None
        )
    return tuple(found)
