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
from vllm_kprune.serving.options import PREFIX, read_options
from vllm_kprune.serving.request_options import of_guard

__all__ = ["GuardSettings", "guard_settings", "request_policy"]


@dataclass(frozen=True)
class GuardSettings:
    """The server's part: the policy of requests that ask for none, and may they ask?"""

    default: GuardPolicy | None = None
    fixed: bool = False


def guard_settings(additional_config: Any) -> GuardSettings:
    """The settings in `additional_config["kprune"]`; `KPruneError` for wrong ones."""
    options = read_options(additional_config)
    try:
        default = parse_policy(options.guard) if options.guard else None
    except KPruneError as error:
        raise KPruneError(f"--kprune-* options of the guard: {error}") from None
    if options.guard_fixed and default is None:
        raise KPruneError("--kprune-guard-fixed: the guard is off, so there is nothing to fix")
    return GuardSettings(default, options.guard_fixed)


def request_policy(
    settings: GuardSettings, extra_args: Mapping[str, Any] | None
) -> GuardPolicy | None:
    """The policy of a request; None if it is not guarded. `KPruneError` for what it may not ask."""
    options = of_guard(extra_args)
    if not options:
        return settings.default
    if settings.fixed:
        raise KPruneError(
            f"vllm_xargs: this server's guard is fixed; leave {PREFIX}{min(options)} out"
        )
    try:
        return parse_policy(options, settings.default)
    except KPruneError as error:
        raise KPruneError(f"vllm_xargs, {PREFIX}*: {error}") from None
