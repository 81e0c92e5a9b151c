"""What `kprune compare` adds to every request of both sides, or of one side."""

from dataclasses import dataclass

from vllm_kprune.cli.typer_options import flags_of
from vllm_kprune.compare.endpoint.extras import Extras, extra_body, extra_headers, extra_query
from vllm_kprune.options import option, options_of

__all__ = ["ExtraOptions"]

_PANEL = "Added to every request"
_SIDES = ("original", "pruned")


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
    pruned_extra_body: str | None = option(
        None, "Fields for the pruned side only.", metavar="JSON", group=_PANEL
    )
    pruned_header: tuple[str, ...] = option((), "Header for the pruned side only.", group=_PANEL)
    pruned_query: tuple[str, ...] = option((), "Parameter for the pruned side only.", group=_PANEL)

    def of_sides(self) -> tuple[Extras, Extras]:
        """The extras of the original and of the pruned side."""
        common = self._of("")
        first, second = (self._of(f"{side}_").over(common) for side in _SIDES)
        return first, second

    def _of(self, prefix: str) -> Extras:
        flags = {one.name: flags_of(one)[-1] for one in options_of(type(self))}
        body, header, query = (
            (flags[name], getattr(self, name))
            for name in (f"{prefix}extra_body", f"{prefix}header", f"{prefix}query")
        )
        return Extras(extra_body(*body), extra_headers(*header), extra_query(*query))
