"""Options as rows of the reference pages."""

from collections.abc import Iterable
from dataclasses import dataclass

from vllm_kprune.options.declare import Option, shown_default, spelled

__all__ = ["OptionRow", "reference_rows"]


@dataclass(frozen=True)
class OptionRow:
    """A row of a reference page, all as text; `flags` are every spelling on a command line."""

    name: str
    flags: tuple[str, ...]
    type: str
    default: str
    bounds: str
    help: str
    group: str


def reference_rows(
    options: Iterable[Option], *, form: str = "", prefix: str = "--"
) -> tuple[OptionRow, ...]:
    """What the reference says of options: a row for each that exists in the form."""
    rows = []
    for one in options:
        name = one.name_in(form)
        if name is not None:
            flags = (name,) if one.positional else one.flags or (spelled(prefix, name),)
            kind = one.kind.__name__.lower()
            rows.append(
                OptionRow(
                    name,
                    flags,
                    f"list of {kind}" if one.many else kind,
                    one.default_text or shown_default(one),
                    one.expected,
                    one.help,
                    one.group or "",
                )
            )
    return tuple(rows)
