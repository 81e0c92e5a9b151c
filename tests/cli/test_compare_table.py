import io
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console
from support.synthetic_report import synthetic_report

from vllm_kprune.cli.compare_table import print_brief, print_report
from vllm_kprune.compare.measurements import Measurement, Metric, SuiteResult
from vllm_kprune.compare.report.build import build_report
from vllm_kprune.compare.report.document import Report


def printed(report: Report, width: int = 120) -> str:
    stream = io.StringIO()
    print_report(report, Console(file=stream, width=width, color_system=None))
    return stream.getvalue()


def small_report(title: str = "Correct answers", why: str = "no data") -> Report:
    metric = Metric("right", title, "share", "higher", 0.02)
    items = tuple(f"{row}" for row in range(40))
    original, pruned = np.ones((40, 1)), np.zeros((40, 1))
    result = SuiteResult(
        "accuracy",
        (Measurement(metric, items, original, pruned),),
        unavailable={"kmmlu": why},
        notes=("zero-shot",),
    )
    missing = SuiteResult("memory", (), unavailable={"*": "the server tells nothing"})
    return build_report(
        [result, missing], endpoints=(), settings={}, versions={}, seed=1, resamples=500
    )


def test_the_summary_names_figures_verdicts_and_what_is_missing() -> None:
    text = printed(small_report())
    assert "accuracy: worse" in text
    assert "100.0 %" in text and "0.0 %" in text and "−100.0 pp" in text
    assert "kmmlu not measured: no data" in text
    assert "memory: not measured" in text and "the server tells nothing" in text
    assert "zero-shot" in text and "effect [interval]" in text
    assert text.rstrip().endswith("worse: accuracy; not measured: memory")


def brief(report: Report, width: int = 80) -> list[str]:
    stream = io.StringIO()
    print_brief(report, Console(file=stream, width=width, color_system=None))
    return [line.rstrip() for line in stream.getvalue().splitlines()]


@pytest.mark.parametrize("width", [60, 80, 120])
def test_a_whole_report_fits_on_a_screen_with_its_summary_at_both_ends(width: int) -> None:
    report = synthetic_report(resamples=100)
    noted = [suite.model_copy(update={"notes": ["WARNING: x" * 30] * 9}) for suite in report.suites]
    for one in (report, report.model_copy(update={"suites": noted})):
        lines = brief(one, width)
        assert len(lines) <= (40 if width >= 80 else 44)
        assert max(map(len, lines)) <= width
        start = one.summary[:40]
        assert lines[0].startswith(start)
        assert any(line.startswith(start) for line in lines[-4:])
        for suite in one.suites:
            assert any(line.startswith(f"{suite.name}: ") for line in lines)


def test_the_brief_names_what_is_worse_and_leaves_out_what_is_equal() -> None:
    text = "\n".join(brief(small_report("[b]Right[/b]"), 120))
    assert "▼ [b]Right[/b]: 100.0 % → 0.0 %, −100.0 pp" in text
    assert "memory: not measured: the server tells nothing" in text
    ones = np.ones((400, 1))
    equal = Measurement(
        Metric("right", "Right", "share", "higher", 0.02), tuple(map(str, range(400))), ones, ones
    )
    report = build_report(
        [SuiteResult("accuracy", (equal,))], endpoints=(), settings={}, versions={}, seed=1
    )
    assert brief(report)[2] == "  no flaw on either side in 400 items; at most 0.7 pp apart"
    assert "▼" not in "\n".join(brief(report))


def test_text_of_a_report_is_not_read_as_markup() -> None:
    text = printed(small_report("[red]title[/red]", "[link=x]why"))
    assert "[red]title[/red]" in text
    assert "[link=x]why" in text


def test_a_narrow_terminal_is_not_overrun() -> None:
    text = printed(small_report(), width=60)
    assert max(map(len, text.splitlines())) <= 60


def test_told_figures_of_quantiles_and_single_languages_are_left_to_the_report() -> None:
    items = tuple(f"{row}" for row in range(40))
    ones = np.ones((40, 1))
    told = Metric("lpr_t0", "all lines", "share", "neither", 0.02)
    metrics = (
        told,
        replace(told, name="lpr_ko_t0", title="Korean lines", detail=True),
        replace(told, name="ttft_p95@8", title="p95 of eight", detail=True),
        replace(told, name="lcpr_ko_t0", title="judged in Korean", better="higher"),
    )
    measured = tuple(Measurement(metric, items, ones, ones) for metric in metrics)
    suite = SuiteResult("stability", measured)
    report = build_report([suite], endpoints=(), settings={}, versions={}, seed=1, resamples=500)
    text = printed(report)
    assert "all lines" in text and "judged in Korean" in text
    assert "Korean lines" not in text and "p95" not in text
    assert "2 more informational metrics are in the report" in text
