"""What pruning costs texts, as `kprune inspect` and `kprune build` show it."""

import json

from rich.markup import escape
from rich.table import Table

from vllm_kprune.checkpoint.inspection import Inspection
from vllm_kprune.cli.console import error_console, output_console
from vllm_kprune.vocabulary.missing import TextCost

__all__ = ["cost_table", "show_dearest", "warn_of_cost"]

_IN_A_ROW = 4
# Above this share of extra tokens, a corpus is dear.
_DEAR = 0.02


def cost_table(result: Inspection) -> Table:
    """A row for the sample of each genre, and for each of the user's texts."""
    table = Table(title="extra tokens by kind of text", title_justify="left")
    for heading in ("", "original", "extra", "missed most"):
        right = heading in ("original", "extra")
        table.add_column(heading, justify="right" if right else "left", overflow="fold")
    for name, cost in {**result.genres, **result.texts}.items():
        missed = "  ".join(_shown(one.text) for one in cost.dearest[:_IN_A_ROW])
        table.add_row(escape(name), f"{cost.original:,}", f"{cost.extra:+.2%}", escape(missed))
    return table


def show_dearest(name: str, cost: TextCost) -> None:
    """The missing tokens that cost a text most, and how to keep them."""
    table = Table(title=f"{escape(name)}: missing tokens", title_justify="left")
    for heading in ("token", "occurs", "extra tokens"):
        table.add_column(heading, justify="left" if heading == "token" else "right")
    for one in cost.dearest:
        table.add_row(escape(_shown(one.text)), f"{one.occurrences:,}", f"{one.extra_tokens:,}")
    output_console.print(table)
    keep = ", ".join(_shown(one.text) for one in cost.dearest)
    output_console.print(
        f"to keep them: --corpus {name}, or in your profile: keep: [{keep}]",
        markup=False,
        soft_wrap=True,
    )


def warn_of_cost(costs: dict[str, float]) -> None:
    """Say which corpora cost more than 2 % with the vocabulary that was chosen."""
    for name, extra in costs.items():
        if extra > _DEAR:
            error_console.print(
                f"warning: {name} needs {extra:.1%} more tokens with this vocabulary; a larger "
                "--coverage, --max-extra-tokens 0.02 or another language keeps more of it",
                markup=False,
                soft_wrap=True,
            )


def _shown(text: str) -> str:
    """A token as YAML and a reader take it: spaces and line ends are seen."""
    return json.dumps(text, ensure_ascii=False)
