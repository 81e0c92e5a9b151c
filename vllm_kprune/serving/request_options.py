"""What a request may ask of kprune: the names, of the guard and of the input pruner.

A server knows both sets even if it has only one of the features, so that a typo names all that
there is, and what is off is said to be off.
"""

from collections.abc import Mapping
from typing import Any

from vllm_kprune.errors import KPruneError, nearest
from vllm_kprune.guard.policy import OPTIONS as GUARD_NAMES
from vllm_kprune.prompt.options import OPTIONS as _PRUNE_NAMES
from vllm_kprune.serving.options import PREFIX

__all__ = ["GUARD_NAMES", "PRUNE_NAMES", "of_guard", "of_pruner"]

# As requests and the command line say them; `roles` alone could be anybody's.
_SPELLED = {"roles": "prune_roles"}
PRUNE_NAMES = {_SPELLED.get(name, name): name for name in _PRUNE_NAMES}
_KNOWN = tuple(PREFIX + name for name in (*GUARD_NAMES, *PRUNE_NAMES))


def of_guard(extra_args: Mapping[str, Any] | None) -> dict[str, Any]:
    """The guard's options among a request's `vllm_xargs`, without their prefix.

    Raises `KPruneError` for a key that begins with `kprune_` and that nobody knows.
    """
    return {name: value for name, value in _given(extra_args).items() if name in GUARD_NAMES}


def of_pruner(extra_args: Mapping[str, Any] | None) -> dict[str, Any]:
    """The input pruner's options, by the names of `prompt.options`; raises as `of_guard`."""
    given = _given(extra_args)
    return {PRUNE_NAMES[name]: value for name, value in given.items() if name in PRUNE_NAMES}


def _given(extra_args: Mapping[str, Any] | None) -> dict[str, Any]:
    given = {
        key: value
        for key, value in (extra_args or {}).items()
        if isinstance(key, str) and key.startswith(PREFIX)
    }
    for key in given:
        if key not in _KNOWN:
            raise KPruneError(f"vllm_xargs: unknown key {key[:64]!r}; {nearest(key[:64], _KNOWN)}")
    return {key.removeprefix(PREFIX): value for key, value in given.items()}
