import io
from dataclasses import replace

import numpy as np
from rich.console import Console

from vllm_kprune.cli.compare_table import print_report
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
