"""A report for machines of continuous integration: JUnit XML, and Markdown for a step's summary.

Every judged metric and every condition of `--fail-on` is a test case. A metric that is worse is a
failure even if no condition is about it, so that no overview can be green beside it.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

from vllm_kprune.compare.gate import GateResult
from vllm_kprune.compare.report.document import MetricReport, Report, SuiteReport
from vllm_kprune.compare.report.sides import side_by_side, sides_of
from vllm_kprune.errors import KPruneError

__all__ = ["junit", "summary_markdown", "write_junit", "write_summary"]

_SIGNS = {"worse": "❌", "better": "✅", "equal": "✅", "not enough data": "❔"}
_STEP_SUMMARY = "GITHUB_STEP_SUMMARY"


def write_junit(report: Report, gates: Sequence[GateResult], path: Path) -> None:
    """Write the report as JUnit XML."""
    _write(path, junit(report, gates), "w")


def write_summary(report: Report, gates: Sequence[GateResult], path: Path) -> None:
    """Write the report as Markdown; appended where GitHub collects the summary of a step."""
    step = os.environ.get(_STEP_SUMMARY)
    mode = "a" if step and Path(step) == path else "w"
    _write(path, summary_markdown(report, gates), mode)


def junit(report: Report, gates: Sequence[GateResult]) -> str:
    """The report as JUnit XML."""
    root = ElementTree.Element("testsuites", name="kprune compare")
    for suite in report.suites:
        _add_suite(root, suite)
    if gates:
        node = ElementTree.SubElement(root, "testsuite", name="--fail-on")
        for one in gates:
            case = ElementTree.SubElement(node, "testcase", name=one.gate.text, classname="fail-on")
            if one.failed:
                ElementTree.SubElement(case, "failure", message=_plain(one.why))
        _count(node)
    _count(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def _add_suite(root: ElementTree.Element, suite: SuiteReport) -> None:
    node = ElementTree.SubElement(root, "testsuite", name=_plain(suite.name))
    for metric in suite.metrics:
        if metric.verdict == "informational":
            continue
        name, about = _plain(metric.title), _plain(f"{metric.shown.effect}: {metric.words}")
        case = ElementTree.SubElement(node, "testcase", name=name, classname=_plain(suite.name))
        if metric.verdict == "worse":
            ElementTree.SubElement(case, "failure", message=about)
        elif metric.verdict == "not enough data":
            ElementTree.SubElement(case, "skipped", message=about)
        else:
            ElementTree.SubElement(case, "system-out").text = about
    for name, why in suite.unavailable.items():
        what = suite.name if name == "*" else name
        case = ElementTree.SubElement(
            node, "testcase", name=_plain(what), classname=_plain(suite.name)
        )
        ElementTree.SubElement(case, "skipped", message=_plain(f"not measured: {why}"))
    _count(node)


def _count(node: ElementTree.Element) -> None:
    for name, tag in (("tests", "testcase"), ("failures", "failure"), ("skipped", "skipped")):
        node.set(name, str(sum(1 for _ in node.iter(tag))))


def summary_markdown(report: Report, gates: Sequence[GateResult]) -> str:
    """The report in a table of Markdown, with the conditions of `--fail-on` below."""
    models = [f"{one.name}: `{_cell(one.model)}`" for one in report.endpoints]
    lines = [f"## kprune compare: {_cell(report.summary)}", "", ", ".join(models), ""]
    lines += _matrix(report) if sides_of(report) else _table(report)
    warnings = [note for suite in report.suites for note in suite.notes if _is_warning(note)]
    lines += ["", *(f"- ⚠️ {_cell(note)}" for note in warnings)] if warnings else []
    if gates:
        lines += ["", *(f"- {'❌' if one.failed else '✅'} `{_cell(one.gate.text)}`: "
                        f"{_cell(one.why)}" for one in gates)]  # fmt: skip
    return "\n".join(lines) + "\n"


def _table(report: Report) -> list[str]:
    rows = [
        _row(suite, next((one for one in suite.metrics if one.name == suite.main), None))
        for suite in report.suites
    ]
    return ["| suite | verdict | main metric | effect |", "|---|---|---|---|", *rows]


def _matrix(report: Report) -> list[str]:
    """A column for each pruned side."""
    sides = sides_of(report)
    lines = [
        f"| suite | main metric | original | {' | '.join(sides)} |",
        "|---" * (3 + len(sides)) + "|",
    ]
    for row in side_by_side(report):
        cells = [row.suite, row.title, row.original, *map(_side, row.sides)]
        lines.append("| " + " | ".join(map(_cell, cells)) + " |")
    return lines


def _side(cell: tuple[SuiteReport, MetricReport | None] | None) -> str:
    suite, main = cell or (None, None)
    if not suite or not suite.metrics:
        return "not measured"
    effect = f"{main.shown.effect}: " if main else ""
    return f"{_SIGNS.get(suite.verdict, '')} {effect}{suite.words}".strip()


def _is_warning(note: str) -> bool:
    return note.startswith("WARNING")


def _row(suite: SuiteReport, main: MetricReport | None) -> str:
    words = suite.words if suite.metrics else "not measured"
    sign = _SIGNS.get(suite.verdict, "") if suite.metrics else ""
    title, effect = (main.title, main.shown.effect) if main else ("", "")
    cells = suite.name, f"{sign} {words}".strip(), title, effect
    return "| " + " | ".join(map(_cell, cells)) + " |"


def _cell(text: str) -> str:
    """Text that ends neither a cell nor a line, and is no HTML."""
    plain = _plain(text).replace("|", "\\|").replace("`", "'")
    return plain.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _plain(text: str) -> str:
    """Text without what XML 1.0 cannot hold, on one line."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def _write(path: Path, text: str, mode: str) -> None:
    try:
        with path.open(mode, encoding="utf-8") as stream:
            stream.write(text)
    except OSError as error:
        raise KPruneError(f"{path} cannot be written: {error.strerror}") from None
