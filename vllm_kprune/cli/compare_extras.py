"""What `kprune compare` adds to every request of both sides, or of one side."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vllm_kprune.cli.typer_options import flags_of
from vllm_kprune.compare.endpoint.extras import Extras, extra_body, extra_headers, extra_query
from vllm_kprune.errors import KPruneError
from vllm_kprune.options import option, options_of

__all__ = ["ExtraOptions"]

_PANEL = "Added to every request"
_PRUNED_FIELDS = ("pruned_extra_body", "pruned_header", "pruned_query")


@dataclass(frozen=True)
class ExtraOptions:
    """For both sides, and for each side, whose own values win."""

    extra_body: str | None = option(
        None,
        "JSON object whose fields are added to every request: "
        '{"chat_template_kwargs": {"enable_thinking": false}}.',
        metavar="JSON",
        group=_PANEL,
    )
    header: tuple[str, ...] = option(
        (), 'Header of every request, "NAME: VALUE"; repeat for several.', group=_PANEL
    )
    query: tuple[str, ...] = option(
        (),
        "Parameter of every URL, NAME=VALUE, such as api-version=2024-10-21; repeat for several.",
        group=_PANEL,
    )
    original_extra_body: str | None = option(
        None, "Fields for the original side only.", metavar="JSON", group=_PANEL
    )
    original_header: tuple[str, ...] = option(
        (), "Header for the original side only.", group=_PANEL
    )
    original_query: tuple[str, ...] = option(
        (), "Parameter for the original side only.", group=_PANEL
    )
    pruned_extra_body: tuple[str, ...] = option(
        (),
        "Fields for the pruned sides only, or guarded@JSON for one of several.",
        metavar="JSON",
        group=_PANEL,
    )
    pruned_header: tuple[str, ...] = option(
        (),
        'Header for the pruned sides only, or "guarded@NAME: VALUE" for one of several.',
        group=_PANEL,
    )
    pruned_query: tuple[str, ...] = option(
        (),
        "Parameter for the pruned sides only, or guarded@NAME=VALUE for one of several.",
        group=_PANEL,
    )

    def of_original(self) -> Extras:
        """The extras of the original side."""
        return self._of("original_").over(self._of(""))

    def of_pruned(self, name: str, names: Sequence[str] = ()) -> Extras:
        """The extras of a pruned side; `names` are those of all pruned sides."""
        of_all: dict[str, list[str]] = {field: [] for field in _PRUNED_FIELDS}
        of_one: dict[str, list[str]] = {field: [] for field in _PRUNED_FIELDS}
        for field in _PRUNED_FIELDS:
            for value in getattr(self, field):
                side, at, own = value.partition("@")
                if not at or side not in names:
                    of_all[field].append(value)
                elif side == name:
                    of_one[field].append(own)
        common = self._of("pruned_", of_all).over(self._of(""))
        return self._of("pruned_", of_one).over(common)

    def _of(self, prefix: str, values: Mapping[str, Sequence[str]] | None = None) -> Extras:
        flags = {one.name: flags_of(one)[-1] for one in options_of(type(self))}
        body, header, query = (
            (flags[name], (values or {}).get(name, getattr(self, name)))
            for name in (f"{prefix}extra_body", f"{prefix}header", f"{prefix}query")
        )
        return Extras(_body(*body), extra_headers(*header), extra_query(*query))


def _body(flag: str, given: str | Sequence[str] | None) -> dict[str, Any]:
    texts = [given] if isinstance(given, str) else list(given or ())
    if len(texts) > 1:
        raise KPruneError(
            f"{flag}: got {len(texts)} values for one side; put all fields into one JSON object"
        )
    return extra_body(flag, texts[0] if texts else None)
