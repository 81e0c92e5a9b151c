"""Which guard a request gets: the server's default, its own `kprune_*` options, or none.

    vllm serve MODEL --kprune-languages ko,en
    extra_body={"vllm_xargs": {"kprune_languages": "ko", "kprune_hanja": "ksx1001"}}
    SamplingParams(extra_args={"kprune_languages": "off"})

The options of a request are those of `guard.policy`, with the prefix `kprune_`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vllm_kprune.errors import KPruneError
from vllm_kprune.guard.policy import GuardPolicy, parse_policy
from vllm_kprune.options import make, options_of
from vllm_kprune.serving.options import FLAG_PREFIX, FORM, PREFIX, GuardOptions
from vllm_kprune.serving.request_options import of_guard

__all__ = ["GuardSettings", "guard_settings", "request_policy"]


@dataclass(frozen=True)
class GuardSettings:
    """The server's part: the policy of requests that ask for none, and may they ask?

    `attached`: this engine has a guard. If it has none, `obstacle` says why it cannot have one.
    """

    default: GuardPolicy | None = None
    fixed: bool = False
    attached: bool = False
    obstacle: str = "this engine was started without one"


def guard_settings(values: Mapping[str, Any]) -> GuardSettings:
    """The settings in a server's options; `KPruneError` for wrong ones."""
    # `values` holds the options of all features; each table takes its own, or `make` would refuse
    # the others as unknown.
    how: dict[str, Any] = {"form": FORM, "prefix": FLAG_PREFIX}
    own = {one.name for one in options_of(GuardOptions)}
    policy = {one.name for one in options_of(GuardPolicy, FORM)}
    server = make(GuardOptions, {k: v for k, v in values.items() if k in own}, **how)
    default = parse_policy({k: v for k, v in values.items() if k in policy}, **how)
    if server.guard_fixed and default is None:
        raise KPruneError("--kprune-guard-fixed: the guard is off, so there is nothing to fix")
    return GuardSettings(default, server.guard_fixed)


def request_policy(
    settings: GuardSettings, extra_args: Mapping[str, Any] | None
) -> GuardPolicy | None:
    """The policy of a request; None if it is not guarded. Raises `KPruneError` for bad options."""
    options = of_guard(extra_args)
    # Before `fixed`: a request that says nothing of the guard is fine there.
    if not options:
        return settings.default
    if settings.fixed:
        raise KPruneError(
            f"vllm_xargs: this server's guard is fixed; leave {PREFIX}{min(options)} out"
        )
    try:
        return parse_policy(options, settings.default, prefix=PREFIX)
    except KPruneError as error:
        raise KPruneError(f"vllm_xargs: {error}") from None
