"""Several pruned sides in one report: names of suites, and one table of all sides.

With one pruned side, a suite is called `stability`; with several, there is one for each of them:
`stability@plain`, `stability@guarded`. All are corrected together.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from vllm_kprune.compare.report.document import MetricReport, Report, SuiteReport

__all__ = ["SideBySide", "of_side", "side_by_side", "side_of", "sides_of", "suite_name"]

_AT = "@"  # in no name of a suite, and in no name of a side


@dataclass(frozen=True)
class SideBySide:
    """One suite's main metric: its title, the original's score, and for each side the suite.

    A side's suite is None where it was not run. `original` differs between the sides only where
    the original was measured again beside each (`latency`).
    """

    suite: str
    title: str
    original: str
    sides: tuple[tuple[SuiteReport, MetricReport | None] | None, ...]


def suite_name(suite: str, side: str) -> str:
    """The name of a suite in a report."""
    return f"{suite}{_AT}{side}" if side else suite


def side_of(name: str) -> tuple[str, str]:
    """A suite and its side, from its name in a report; the side is empty with one pruned side.

    >>> side_of("stability@guarded")
    ('stability', 'guarded')
    """
    suite, _, side = name.partition(_AT)
    return suite, side


def sides_of(report: Report) -> list[str]:
    """The names of the pruned sides if there are several, in order."""
    return list(dict.fromkeys(side for one in report.suites if (side := side_of(one.name)[1])))


def of_side(report: Report, side: str) -> Report:
    """The part of a report about one pruned side, with the plain names of suites."""
    suites = [
        one.model_copy(update={"name": side_of(one.name)[0]})
        for one in report.suites
        if side_of(one.name)[1] == side
    ]
    return report.model_copy(update={"suites": suites})


def side_by_side(report: Report) -> list[SideBySide]:
    """A row for each suite, with all sides."""
    sides = sides_of(report)
    by_name = {one.name: one for one in report.suites}
    suites = dict.fromkeys(side_of(one.name)[0] for one in report.suites) if sides else {}
    return [
        _row(suite, [by_name.get(suite_name(suite, side)) for side in sides]) for suite in suites
    ]


def _row(suite: str, found: Sequence[SuiteReport | None]) -> SideBySide:
    cells = [(one, _main(one)) if one else None for one in found]
    mains = [cell[1] for cell in cells if cell and cell[1]]
    before = list(dict.fromkeys(main.shown.original for main in mains if main.pruned))
    return SideBySide(
        suite=suite,
        title=mains[0].title if mains else "",
        original=" / ".join(before),
        sides=tuple(cells),
    )


def _main(suite: SuiteReport) -> MetricReport | None:
    return next((one for one in suite.metrics if one.name == suite.main), None)
