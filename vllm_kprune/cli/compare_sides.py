"""Which endpoints `kprune compare` asks: `--original URL --pruned URL`, and more pruned sides.

    --pruned plain@http://localhost:8001 --pruned guarded@http://localhost:8002
    --pruned-extra-body 'guarded@{"seed_bias": 1}'

A pruned side may have a name, and a value of an option about pruned sides may begin with it. Such a
value holds for that side only, any other for all of them.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from vllm_kprune.cli.compare_extras import ExtraOptions
from vllm_kprune.compare.connect import Address
from vllm_kprune.compare.options import ENDPOINTS
from vllm_kprune.compare.settings import side_keys
from vllm_kprune.errors import KPruneError
from vllm_kprune.options import option

__all__ = ["EndpointOptions", "Sides", "sides_of"]

_MOST_SIDES = 8
_NAMED = re.compile(r"(?P<name>[a-z][a-z0-9_]{0,30})@(?=https?://)")


@dataclass(frozen=True)
class EndpointOptions:
    """Where the sides are found."""

    original: str | None = option(
        None, "URL of the original model's server, with or without /v1.", group=ENDPOINTS
    )
    pruned: tuple[str, ...] = option(
        (),
        "URL of the pruned model's server. Repeat it to compare several with one original, and "
        "name each: guarded@URL.",
        group=ENDPOINTS,
    )
    original_model: str | None = option(
        None,
        "Name of the model on that server; by default the only one that is served.",
        group=ENDPOINTS,
    )
    pruned_model: tuple[str, ...] = option(
        (), "The same for the pruned model's server, or guarded@MODEL for one.", group=ENDPOINTS
    )
    timeout: float = option(300.0, "Seconds that one request may take.", least=1, group=ENDPOINTS)


@dataclass(frozen=True)
class Sides:
    """The original, the pruned side, and further pruned sides."""

    original: Address
    pruned: Address
    more: tuple[Address, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the pruned sides if there are several."""
        return tuple(one.side for one in (self.pruned, *self.more)) if self.more else ()


def sides_of(endpoints: EndpointOptions, extras: ExtraOptions) -> Sides:
    """The addresses that the options name; `KPruneError` if one is missing."""
    for flag, given in (("--original", endpoints.original), ("--pruned", endpoints.pruned)):
        if not given:
            raise KPruneError(f"{flag} is missing, expected a URL such as http://HOST:8000")
    if len(endpoints.pruned) > _MOST_SIDES:
        raise KPruneError(f"--pruned: got {len(endpoints.pruned)} sides, expected at most 8")
    found = [_NAMED.match(url) for url in endpoints.pruned]
    names = [
        match["name"] if match else key
        for match, key in zip(found, side_keys(1 + len(found))[1:], strict=True)
    ]
    pruned = [
        Address(
            url[match.end() :] if match else url,
            _model(endpoints.pruned_model, name, names),
            extras=extras.of_pruned(name, names),
            # A single side without a name stays as it was.
            side=name if match or len(names) > 1 else "",
        )
        for url, match, name in zip(endpoints.pruned, found, names, strict=True)
    ]
    original = Address(
        str(endpoints.original), endpoints.original_model, extras=extras.of_original()
    )
    return Sides(original, pruned[0], tuple(pruned[1:]))


def _model(models: Sequence[str], name: str, names: Sequence[str]) -> str | None:
    """The model of a side: its own, else that of all."""
    common = [one for one in models if one.partition("@")[0] not in names]
    own = [one.partition("@")[2] for one in models if one.startswith(f"{name}@")]
    if len(common) > 1 or len(own) > 1:
        raise KPruneError(
            f"--pruned-model: got {len(models)} names; name the side of each, such as "
            f"{names[-1]}@{(own or common)[-1]}"
        )
    return next(iter(own or common), None)
