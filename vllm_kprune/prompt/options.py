"""What a request, a server or a command asks of the input pruner, checked.

Values come from HTTP requests and are hostile: of any type, of any length. Everything unknown is a
`KPruneError` that names what is known.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, get_args

from vllm_kprune.errors import KPruneError, nearest, shown
from vllm_kprune.guard.policy import switch
from vllm_kprune.prompt.budget import PruneOptions
from vllm_kprune.prompt.pieces import Unit
from vllm_kprune.prompt.scorers import SCORERS
from vllm_kprune.prompt.segments import ROLES

__all__ = ["OFF", "OPTIONS", "PruneRequest", "parse_prune_request"]

OFF = "off"
_PRUNABLE_ROLES = (*ROLES, "system", "developer", "tool")
_MOST_TOKENS = 10_000_000
_MOST_TEXTS = 64
_LONGEST_TEXT = 64


@dataclass(frozen=True)
class PruneRequest:
    """How the parts of one request are pruned.

    `roles` are those whose earlier chat messages are pruned where nothing is marked. `marks` False
    takes <kprune> marks for text. `strict`: a failure of the pruner fails the request.
    """

    options: PruneOptions = field(default_factory=PruneOptions)
    roles: tuple[str, ...] = ROLES
    marks: bool = True
    strict: bool = False


def parse_prune_request(
    given: Mapping[str, object], default: PruneRequest | None = None
) -> PruneRequest:
    """Check options (keys of `OPTIONS`); what is not given is the default's.

    `keep="off"` keeps everything. A request that gives one of `keep` and `target_tokens` replaces
    both of the default's. Raises `KPruneError` for anything unknown, of a wrong type or too large.
    """
    default = default or PruneRequest()
    for key in given:
        if key not in OPTIONS:
            raise KPruneError(f"unknown option {shown(key)}; {nearest(str(key)[:64], OPTIONS)}")
    values = {key: OPTIONS[key](key, value) for key, value in given.items()}
    own = {key: values.pop(key) for key in ("roles", "marks", "strict") if key in values}
    if "keep" in values and "target_tokens" in values:
        raise KPruneError("keep and target_tokens: give one of them")
    if "keep" in values:
        values["target_tokens"] = None
    return replace(default, options=replace(default.options, **values), **own)


def _keep(key: str, value: object) -> float:
    if isinstance(value, str) and value.strip().lower() == OFF:
        return 1.0
    number = _number(value)
    if number is None or not 0 < number <= 1:
        raise KPruneError(
            f"{key}: got {shown(value)}, expected the share of tokens to keep, above 0 and at most "
            "1, or off"
        )
    return number


def _number(value: object) -> float | None:
    """A finite number, or the text of one; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value[:32] if isinstance(value, str) else value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _tokens(least: int) -> Callable[[str, object], int]:
    def check(key: str, value: object) -> int:
        number = _number(value)
        if number is None or number != int(number) or not least <= number <= _MOST_TOKENS:
            raise KPruneError(
                f"{key}: got {shown(value)}, expected a number of tokens from {least} to "
                f"{_MOST_TOKENS}"
            )
        return int(number)

    return check


def _one_of(names: tuple[str, ...]) -> Callable[[str, object], str]:
    def check(key: str, value: object) -> str:
        if isinstance(value, str) and value in names:
            return value
        raise KPruneError(f"{key}: got {shown(value)}, expected one of {', '.join(names)}")

    return check


def _texts(key: str, value: object) -> tuple[str, ...]:
    """One text, or a list of them; a comma is a text too, so there is no list in one text."""
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list | tuple) or not all(isinstance(text, str) for text in texts):
        raise KPruneError(f"{key}: got {shown(value)}, expected a text or a list of texts")
    if len(texts) > _MOST_TEXTS or any(not 0 < len(text) <= _LONGEST_TEXT for text in texts):
        raise KPruneError(
            f"{key}: at most {_MOST_TEXTS} texts of 1 to {_LONGEST_TEXT} characters are taken"
        )
    return tuple(texts)


def _roles(key: str, value: object) -> tuple[str, ...]:
    names = value.split(",") if isinstance(value, str) else value
    if not isinstance(names, list | tuple) or len(names) > 16:
        raise KPruneError(f"{key}: got {shown(value)}, expected role names with commas between")
    roles = tuple(name.strip() if isinstance(name, str) else name for name in names)
    for role in roles:
        if role not in _PRUNABLE_ROLES:
            known = ", ".join(_PRUNABLE_ROLES)
            raise KPruneError(f"{key}: got {shown(role)}, expected some of {known}")
    return roles


OPTIONS: Mapping[str, Callable[[str, object], Any]] = {
    "keep": _keep,
    "target_tokens": _tokens(1),
    "unit": _one_of(get_args(Unit)),
    "scorer": _one_of(tuple(SCORERS)),
    "force_tokens": _texts,
    "force_digits": switch,
    "force_first": _tokens(0),
    "force_last": _tokens(0),
    "min_tokens": _tokens(0),
    "roles": _roles,
    "marks": switch,
    "strict": switch,
}
