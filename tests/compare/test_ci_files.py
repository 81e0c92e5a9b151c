"""JUnit XML and Markdown: what is worse is red, whatever was asked for."""

from pathlib import Path
from xml.etree import ElementTree

import pytest
from support.synthetic_measurements import LPR, SHARE, measured
from support.synthetic_report import reported, synthetic_report

from vllm_kprune.compare.ci_files import junit, summary_markdown, write_junit, write_summary
from vllm_kprune.compare.conditions import parse_gates
from vllm_kprune.compare.gate import gate_results
from vllm_kprune.compare.measurements import SuiteResult
from vllm_kprune.errors import KPruneError

ODD = "a|b <b>`x`\x00\n&\ud83d"


def odd_report(worse: int = 40):  # type: ignore[no-untyped-def]
    found = measured(LPR, [[1, 1]] * 100, [[0, 1]] * worse + [[1, 1]] * (100 - worse))
    notes = (f"WARNING: {ODD}", "a note")
    few = measured(SHARE, [1] * 10, [1] * 10)
    return reported(
        SuiteResult("stability", (found, few), notes=notes),
        SuiteResult("input", (), unavailable={"*": ODD}),
    )


def test_junit_counts_failures_by_verdict_and_by_condition() -> None:
    report = odd_report()
    gates = gate_results(parse_gates(["worse", "stability<-0.9", "input<0"]), report)
    root = ElementTree.fromstring(junit(report, gates))
    assert (root.get("tests"), root.get("failures"), root.get("skipped")) == ("6", "3", "2")
    suites = {node.get("name"): node for node in root}
    assert suites["stability"].get("failures") == "1"
    assert suites["--fail-on"].get("failures") == "2"
    (failed,) = suites["stability"].iter("failure")
    assert "−40.0 pp" in str(failed.get("message"))


def test_a_worse_metric_is_a_failure_without_any_condition() -> None:
    assert ElementTree.fromstring(junit(odd_report(), ())).get("failures") == "1"
    assert ElementTree.fromstring(junit(odd_report(worse=0), ())).get("failures") == "0"


def test_the_summary_is_a_table_that_no_text_can_break() -> None:
    report = odd_report()
    text = summary_markdown(report, gate_results(parse_gates(["worse"]), report))
    lines = text.splitlines()
    assert lines[0].startswith("## kprune compare: worse: stability")
    rows = [line for line in lines if line.startswith("| ")]
    assert all(row.replace("\\|", "").count("|") == 5 for row in rows) and len(rows) == 3
    assert "❌ worse in 1" in text and "- ❌ `worse`: 1 of 2 metrics are worse" in text
    assert "- ⚠️ WARNING: a\\|b" in text
    assert "<b>" not in text


def test_whole_reports_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report = synthetic_report(resamples=100)
    write_junit(report, (), tmp_path / "junit.xml")
    assert ElementTree.parse(tmp_path / "junit.xml").getroot().tag == "testsuites"
    path = tmp_path / "summary.md"
    for _ in range(2):
        write_summary(report, (), path)
    assert path.read_text().count("## kprune compare") == 1
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(path))
    write_summary(report, (), path)
    assert path.read_text().count("## kprune compare") == 2
    with pytest.raises(KPruneError, match="cannot be written"):
        write_junit(report, (), tmp_path / "missing" / "junit.xml")
