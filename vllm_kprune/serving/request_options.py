"""What a request may ask of kprune: the names, of the guard, the input pruner and the pruned head.

A server knows all of them even if it has only one of the features, so that a typo is answered with
all names that exist, and a feature that is off is reported as off.
"""

from collections.abc import Mapping
from typing import Any

from vllm_kprune.guard.policy import GuardPolicy
from vllm_kprune.options import options_of, refuse_unknown
from vllm_kprune.prompt.options import prune_options
from vllm_kprune.serving.options import PREFIX, GuardOptions, HeadChoice

__all__ = [
    "ADMITTED",
    "FORM",
    "GUARD_NAMES",
    "GUARD_OPTIONS",
    "HEAD_KEY",
    "HEAD_OPTIONS",
    "PRUNE_NAMES",
    "UNFIXED_NAMES",
    "of_guard",
    "of_pruner",
]

# The form of options (see `vllm_kprune.options`) that a request has.
FORM = "request"
# In the `extra_args` of every request that a server or an `LLM` with a guard has admitted: what
# only the front end knows (see `guard.admission`). vLLM's own requests, its warm-up, lack it.
ADMITTED = "kprune"
GUARD_OPTIONS = (*options_of(GuardPolicy, FORM), *options_of(GuardOptions, FORM))
GUARD_NAMES = tuple(one.name_in(FORM) or "" for one in GUARD_OPTIONS)
PRUNE_NAMES = tuple(one.name_in(FORM) or "" for one in prune_options(FORM))
# What a request may say of pruning where the server has fixed it.
UNFIXED_NAMES = ("marks", "strict")
HEAD_OPTIONS = options_of(HeadChoice, FORM)
HEAD_KEY = f"{PREFIX}head"
_KNOWN = (*(PREFIX + name for name in (*GUARD_NAMES, *PRUNE_NAMES)), HEAD_KEY)


def of_guard(extra_args: Mapping[str, Any] | None) -> dict[str, Any]:
    """The guard's options among a request's `vllm_xargs`, without their prefix.

    Raises `KPruneError` for an unknown key that begins with `kprune_`.
    """
    return {name: value for name, value in _given(extra_args).items() if name in GUARD_NAMES}


def of_pruner(extra_args: Mapping[str, Any] | None) -> dict[str, Any]:
    """The input pruner's options, without their prefix; raises as `of_guard`."""
    return {name: value for name, value in _given(extra_args).items() if name in PRUNE_NAMES}


def _given(extra_args: Mapping[str, Any] | None) -> dict[str, Any]:
    given = {
        key: value
        for key, value in (extra_args or {}).items()
        # Over HTTP all keys are texts; `SamplingParams.extra_args` may have others.
        if isinstance(key, str) and key.startswith(PREFIX)
    }
    refuse_unknown(given, _KNOWN, "vllm_xargs")
    return {key.removeprefix(PREFIX): value for key, value in given.items()}
