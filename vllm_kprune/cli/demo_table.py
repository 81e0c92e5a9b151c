"""What `kprune demo` prints in addition to a comparison: a summary, sizes and the hardware."""

import os

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from vllm_kprune.compare.endpoint.description import machine
from vllm_kprune.compare.report.document import Report
from vllm_kprune.demo.run import Sizes

__all__ = ["hardware", "print_summary"]


def print_summary(
    report: Report, sizes: Sizes, names: tuple[str, str], machine: str, console: Console
) -> None:
    """Print a summary in one sentence, then the sizes; `names` are of the model and the profile."""
    model, profile = map(escape, names)
    console.print(f"[bold]{model}, profile {profile}: {escape(report.summary)}[/]")
    table = Table(caption=escape(machine), caption_justify="left")
    table.add_column("")
    for column in ("original", "pruned", "pruned / original"):
        table.add_column(column, justify="right")
    for row in _rows(sizes):
        table.add_row(*row)
    console.print(table)


def hardware() -> str:
    """The processor, the number of cores, and their load."""
    return f"{machine()}, load {os.getloadavg()[0]:.1f} before"


def _rows(sizes: Sizes) -> list[tuple[str, str, str, str]]:
    tokens, parameters, ready = sizes.tokens, sizes.parameters, sizes.ready_seconds
    before, after = (f"{number / 1e6:,.1f} M" for number in parameters)
    predicted = f"x {sizes.predicted_ratio:.2f}"
    return [
        ("vocabulary (tokens)", f"{tokens[0]:,}", f"{tokens[1]:,}", f"{tokens[1] / tokens[0]:.0%}"),
        ("parameters", before, after, f"{parameters[1] / parameters[0]:.0%}"),
        ("start to ready", f"{ready[0]:.0f} s", f"{ready[1]:.0f} s", ""),
        ("decode speed predicted from bytes, batch 1", "", "", predicted),
    ]
