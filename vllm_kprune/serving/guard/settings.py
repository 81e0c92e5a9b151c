"""Which guard a request gets: the server's default, its own `kprune_*` options, or none.

    vllm serve MODEL --kprune-languages ko,en
    extra_body={"vllm_xargs": {"kprune_languages": "ko", "kprune_hanja": "ksx1001"}}
    SamplingParams(extra_args={"kprune_languages": "off"})

The options of a request are those of `guard.policy`, and `think_languages`, with the prefix
`kprune_`. A policy guards the answer; `think_languages` guards what a model reasons before it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias

from vllm_kprune.errors import KPruneError
from vllm_kprune.guard.policy import GuardPolicy, parse_policy
from vllm_kprune.options import check_values, make, options_of
from vllm_kprune.serving.guard.markers import Markers
from vllm_kprune.serving.options import FLAG_PREFIX, FORM, PREFIX, GuardOptions
from vllm_kprune.serving.request_options import FORM as REQUEST
from vllm_kprune.serving.request_options import of_guard

__all__ = ["GuardSettings", "Policies", "ResolvedEscapes", "guard_settings", "request_policies"]

ResolvedEscapes: TypeAlias = Literal["json", "off"]
_THINK = "think_languages"


@dataclass(frozen=True)
class Policies:
    """The policies of a request's answer and of its reasoning; None: this part is not guarded."""

    answer: GuardPolicy | None = None
    reasoning: GuardPolicy | None = None

    @property
    def guard(self) -> bool:
        """Is any part guarded?"""
        return self.answer is not None or self.reasoning is not None

    def resolved(self, escapes: ResolvedEscapes) -> "Policies":
        """The same policies with `escapes` in place of "auto". Reasoning is no JSON document."""
        answer, reasoning = self.answer, self.reasoning
        if answer and answer.escapes == "auto":
            answer = replace(answer, escapes=escapes)
        return Policies(answer, reasoning and replace(reasoning, escapes="off"))


@dataclass(frozen=True)
class GuardSettings:
    """The server's part: the policy of requests that ask for none, and may they ask?

    `think` are the languages of reasoning by default. `attached`: this engine has a guard. If it
    has none, `obstacle` says why it cannot have one. `markers` None: not looked for yet.
    """

    default: GuardPolicy | None = None
    fixed: bool = False
    attached: bool = False
    obstacle: str = "this engine was started without one"
    think: tuple[str, ...] = ()
    markers: Markers | None = field(default=None, compare=False)

    @property
    def policies(self) -> Policies:
        """What guards a request that asks for nothing."""
        return _policies(self.default, self.think)


def guard_settings(values: Mapping[str, Any]) -> GuardSettings:
    """The settings in a server's options; `KPruneError` for wrong ones."""
    # `values` holds the options of all features; each table takes its own, or `make` would refuse
    # the others as unknown.
    how: dict[str, Any] = {"form": FORM, "prefix": FLAG_PREFIX}
    own = {one.name for one in options_of(GuardOptions)}
    policy = {one.name for one in options_of(GuardPolicy, FORM)}
    server = make(GuardOptions, {k: v for k, v in values.items() if k in own}, **how)
    default = parse_policy({k: v for k, v in values.items() if k in policy}, **how)
    settings = GuardSettings(default, server.guard_fixed, think=server.think_languages or ())
    if server.guard_fixed and not settings.policies.guard:
        raise KPruneError("--kprune-guard-fixed: the guard is off, so there is nothing to fix")
    return settings


def request_policies(settings: GuardSettings, extra_args: Mapping[str, Any] | None) -> Policies:
    """What guards a request. Raises `KPruneError` for bad options."""
    options = of_guard(extra_args)
    # Before `fixed`: a request that says nothing of the guard is fine there.
    if not options:
        return settings.policies
    if settings.fixed:
        raise KPruneError(
            f"vllm_xargs: this server's guard is fixed; leave {PREFIX}{min(options)} out"
        )
    asked = {name: options.pop(name) for name in (_THINK,) if name in options}
    try:
        own = options_of(GuardOptions, REQUEST)
        given = check_values(own, asked, form=REQUEST, prefix=PREFIX, text=True)
        answer = parse_policy(options, settings.default, prefix=PREFIX)
    except KPruneError as error:
        raise KPruneError(f"vllm_xargs: {error}") from None
    return _policies(answer, given.get(_THINK, settings.think))


def _policies(answer: GuardPolicy | None, think: tuple[str, ...] | None) -> Policies:
    if not think:
        return Policies(answer)
    # What else is allowed (digits, hanja, single characters) is the same in both parts.
    reasoning = replace(answer or GuardPolicy(), languages=think, scripts=())
    return Policies(answer, reasoning)
