"""The summary of a report that `kprune compare` prints.

`print_brief` fits on one screen; `print_report` has a table for each suite.
"""

from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table

from vllm_kprune.compare.gate import worse_metrics
from vllm_kprune.compare.planning import PlannedSuite
from vllm_kprune.compare.report.document import MetricReport, Report, SuiteReport
from vllm_kprune.compare.report.sides import SideBySide, side_by_side, sides_of
from vllm_kprune.compare.statistics.verdicts import Verdict

__all__ = ["print_brief", "print_plan", "print_report", "suite_table"]

_STYLES: dict[Verdict, str] = {
    "better": "green",
    "equal": "blue",
    "worse": "bold red",
    "not enough data": "yellow",
    "informational": "dim",
}

_SCREEN = 40
_OTHER_LINES = 8  # the summary twice, in up to three lines each, a legend, the report's address
_LINES_OF_SUITE = 3  # a heading, and a sentence in two lines
_LONGEST = 150  # characters of a sentence
_MOST_WARNINGS = 3
_MOST_WORSE = 6
_TOLD: tuple[Verdict, ...] = ("worse", "better", "not enough data")
_SIGNS = {"worse": "▼", "better": "▲", "not enough data": "?"}


def print_brief(report: Report, console: Console) -> None:
    """Print the summary, warnings, a sentence for each suite, what differs, and the summary again.

    With several pruned sides, one table of them all takes the place of the sentences. At most 40
    lines at 80 columns: with many suites, fewer metrics of each are shown.
    """
    warnings = [
        f"[bold red]{escape(_cut(f'{suite.name}: {note}'))}[/]"
        for suite in report.suites
        for note in filter(_is_warning, suite.notes)
    ]
    room = _SCREEN - _OTHER_LINES - 2 * len(warnings[:_MOST_WARNINGS])
    each = max(0, room // max(1, len(report.suites)) - _LINES_OF_SUITE)
    console.print(f"[bold]{escape(report.summary)}[/]")
    for line in warnings[:_MOST_WARNINGS]:
        console.print(line)
    if rows := side_by_side(report):
        console.print(_sides_table(report, rows))
        for one in worse_metrics(report.suites)[:_MOST_WORSE]:
            line = f"[bold red]▼ {escape(one)}[/]"
            console.print(line, no_wrap=True, overflow="ellipsis", crop=True)
    for suite in report.suites if not rows else ():
        heading, *details = _brief(suite, each)
        console.print(heading, no_wrap=True, overflow="ellipsis", crop=True)
        if suite.metrics:
            console.print(Padding(escape(_cut(suite.sentence)), (0, 0, 0, 2)))
        for line in details:
            console.print(line, no_wrap=True, overflow="ellipsis", crop=True)
    console.print("[dim]×0.92 is 8 % less; brackets are 95 % intervals; -v shows every metric[/]")
    console.print(f"[bold]{escape(report.summary)}[/]")


def _sides_table(report: Report, rows: Sequence[SideBySide]) -> Table:
    """A row for each suite, a column for each pruned side."""
    table = Table(box=None, pad_edge=False)
    for name in ("", "original", *sides_of(report)):
        table.add_column(escape(name), overflow="fold")
    for row in rows:
        title = f"[bold]{escape(row.suite)}[/]\n[dim]{escape(row.title)}[/]"
        table.add_row(title, escape(row.original), *map(_side_cell, row.sides))
    return table


def _side_cell(cell: tuple[SuiteReport, MetricReport | None] | None) -> str:
    suite, main = cell or (None, None)
    if not suite or not suite.metrics:
        return "[dim]not measured[/]"
    score = escape(main.shown.pruned or main.shown.effect) if main else ""
    return f"{score}\n{_coloured(suite.verdict, suite.verdict)}"


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"


def _brief(suite: SuiteReport, most: int) -> Iterator[str]:
    """A heading, and at most so many metrics that differ or lack data."""
    if not suite.metrics:
        yield f"[bold]{escape(suite.name)}[/]: [dim]{escape(suite.sentence)}[/]"
        return
    yield f"[bold]{escape(suite.name)}[/]: {_coloured(suite.verdict, suite.words)}"
    told = [metric for metric in suite.metrics if metric.verdict in _TOLD]
    told.sort(key=lambda metric: _TOLD.index(metric.verdict))
    for metric in told[:most]:
        values = f"{metric.shown.original} → {metric.shown.pruned}"
        doubt = " (not after correction)" if "not after correction" in metric.words else ""
        what = f"{metric.title}: {values}, {metric.shown.effect}{doubt}"
        yield f"  {_coloured(metric.verdict, f'{_SIGNS[metric.verdict]} {what}')}"


def print_report(report: Report, console: Console) -> None:
    """Print warnings, every suite, and a summary in one sentence at the end, where a reader looks
    first.

    Text from the report is never interpreted as rich's markup.
    """
    for suite in report.suites:
        for note in filter(_is_warning, suite.notes):
            console.print(f"[bold red]{escape(suite.name)}: {escape(note)}[/]")
    if rows := side_by_side(report):
        console.print(_sides_table(report, rows))
        console.print()
    for suite in report.suites:
        if suite.metrics:
            console.print(suite_table(suite))
        else:
            console.print(f"[bold]{escape(suite.name)}[/]: not measured")
        for name, why in suite.unavailable.items():
            # "*" stands for the whole suite.
            what = "" if name == "*" else f"{escape(name)} "
            console.print(f"  [dim]{what}not measured: {escape(why)}[/]")
        for note in (note for note in suite.notes if not _is_warning(note)):
            console.print(f"  [dim]{escape(note)}[/]")
        console.print()
    console.print(f"[bold]{escape(report.summary)}[/]")


def _is_warning(note: str) -> bool:
    return note.startswith("WARNING")


def print_plan(planned: Sequence[PlannedSuite], console: Console) -> None:
    """Print what a run would take and what it could find."""
    table = Table(box=None)
    for name in ("suite", "items", "requests a side", "minutes"):
        table.add_column(name, justify="left" if name == "suite" else "right")
    table.add_column("what it can find", overflow="fold")
    for one in planned:
        minutes = "?" if one.minutes is None else f"{one.minutes:.1f}"
        table.add_row(one.name, _count(one.items), _count(one.requests), minutes, one.finds)
    console.print(table)
    known = sum(one.minutes or 0 for one in planned)
    console.print(f"about {known:.0f} minutes, measured with a few prompts at T=0")


def _count(number: int | None) -> str:
    return "?" if number is None else f"{number:,}"


def suite_table(suite: SuiteReport) -> Table:
    """A row for each metric except details; the title has the suite's verdict."""
    shown = [one for one in suite.metrics if not one.detail]
    hidden = len(suite.metrics) - len(shown)
    table = Table(
        title=f"[bold]{escape(suite.name)}[/]: {_coloured(suite.verdict, suite.words)}",
        title_justify="left",
        title_style="not italic",
        caption=f"{hidden} more informational metrics are in the report" if hidden else None,
        caption_justify="left",
    )
    table.add_column("", overflow="fold", ratio=3)
    table.add_column("n", justify="right")
    table.add_column("original", justify="right")
    table.add_column("pruned", justify="right")
    table.add_column(escape("effect [interval]"), justify="right")
    table.add_column("verdict", overflow="fold", ratio=2)
    for metric in shown:
        table.add_row(*_cells(metric))
    return table


def _cells(metric: MetricReport) -> tuple[str, ...]:
    shown = metric.shown
    return (
        escape(metric.title),
        f"{metric.items:,}",
        escape(shown.original) if shown.pruned else "",
        escape(shown.pruned or ""),
        escape(shown.effect),
        _coloured(metric.verdict, metric.words),
    )


def _coloured(verdict: Verdict, words: str) -> str:
    return f"[{_STYLES[verdict]}]{escape(words)}[/]"
