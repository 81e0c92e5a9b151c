"""What a request, a server or a command asks of the input pruner, checked.

Values come from HTTP requests and are hostile: of any type, of any length. Everything unknown is a
`KPruneError` that names what is known.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from vllm_kprune.errors import KPruneError
from vllm_kprune.options import Option, check_values, option, options_of
from vllm_kprune.prompt.budget import PruneOptions
from vllm_kprune.prompt.segments import ROLES

__all__ = ["PruneRequest", "parse_prune_request", "prune_options"]


@dataclass(frozen=True)
class PruneRequest:
    """How the parts of one request are pruned: each segment by `options`, and which by the rest."""

    options: PruneOptions = field(default_factory=PruneOptions)
    roles: tuple[str, ...] = option(
        ROLES,
        "Roles whose chat messages before the last user message are pruned, where nothing is "
        "marked.",
        choices=(*ROLES, "system", "developer", "tool"),
        commas=True,
        most_items=16,
        metavar="user,assistant",
        forms={"request": "prune_roles", "server": "prune_roles"},
    )
    query: str | None = option(
        None,
        "The question that all parts are pruned for, instead of a user message: for prompts that "
        "are no chat, and to prune documents alike in several turns. Only for scorers that use it.",
        noun="a text",
        most=4096,
        forms=["request"],
    )
    marks: bool = option(
        True, "Read <kprune> marks; when off, they are ordinary text.", forms=["request"]
    )
    strict: bool = option(
        False,
        "Answer a request with an error if pruning it fails; otherwise its prompt is sent "
        "unpruned, and the failure is counted and logged.",
        forms={"request": "strict", "server": "pruner_strict"},
    )


def prune_options(form: str = "") -> tuple[Option, ...]:
    """The options of the input pruner that a request has in a form; "" is Python."""
    return (*options_of(PruneOptions, form or None), *options_of(PruneRequest, form or None))


def parse_prune_request(
    given: Mapping[Any, object],
    default: PruneRequest | None = None,
    *,
    form: str = "",
    prefix: str = "",
) -> PruneRequest:
    """Check options, by their names in a form; what is not given is the default's.

    `keep="off"` keeps everything. A request that gives one of `keep` and `target_tokens` replaces
    both of the default's. `prefix` is how options begin in errors. Raises `KPruneError` for
    anything unknown, of a wrong type or too large.
    """
    default = default or PruneRequest()
    text = form != "server"
    values = check_values(prune_options(form), given, form=form, prefix=prefix, text=text)
    # A new field of PruneRequest has to be named here too; all others go to PruneOptions.
    own = {key: values.pop(key) for key in ("roles", "query", "marks", "strict") if key in values}
    if "keep" in values and "target_tokens" in values:
        raise KPruneError("keep and target_tokens: give one of them")
    # A target comes before a share, so the server's target would silence the request's `keep`.
    if "keep" in values:
        values["target_tokens"] = None
    return replace(default, options=replace(default.options, **values), **own)
