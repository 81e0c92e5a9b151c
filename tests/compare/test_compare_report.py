import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.synthetic_measurements import SHARE, measured
from support.synthetic_report import synthetic_report, synthetic_results

from vllm_kprune.compare.conclude import _with_main
from vllm_kprune.compare.measurements import Example, Span, SuiteResult
from vllm_kprune.compare.report import examples, report_file
from vllm_kprune.compare.report.build import build_report
from vllm_kprune.compare.report.document import EndpointReport, Report
from vllm_kprune.compare.report.examples import choose_examples, shorten
from vllm_kprune.compare.report.report_file import read_report, schema, write_report
from vllm_kprune.errors import KPruneError


@pytest.fixture(scope="module")
def report() -> Report:
    return synthetic_report(resamples=200)


def written(report: Report, folder: Path) -> dict[str, Any]:
    write_report(report, folder / "report.json")
    data: dict[str, Any] = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    return data


def test_a_report_is_read_back_as_it_was_written(report: Report, tmp_path: Path) -> None:
    write_report(report, tmp_path / "report.json")
    assert read_report(tmp_path / "report.json") == report
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]


def test_the_same_results_give_the_same_bytes_in_any_order_of_items(
    report: Report, tmp_path: Path
) -> None:
    results = [replace(one, measurements=tuple(map(backwards, one.measurements)))
               for one in synthetic_results()]  # fmt: skip
    again = build_report(
        results,
        endpoints=report.endpoints,
        settings=report.settings,
        versions=report.versions,
        seed=report.seed,
        resamples=200,
    )
    write_report(report, tmp_path / "a.json")
    write_report(again, tmp_path / "b.json")
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()


def backwards(measurement: Any) -> Any:
    sides = {"original": measurement.original[::-1]}
    if measurement.pruned is not None:
        sides["pruned"] = measurement.pruned[::-1]
    return replace(measurement, items=measurement.items[::-1], **sides)


def test_a_report_fits_its_schema_and_the_schema_is_kept(report: Report, tmp_path: Path) -> None:
    jsonschema = pytest.importorskip("jsonschema", reason="jsonschema is not installed")
    validator = jsonschema.Draft202012Validator(schema())
    validator.check_schema(schema())
    data = written(report, tmp_path)
    validator.validate(data)
    del data["suites"][0]["metrics"][0]["effect"]
    assert not validator.is_valid(data)


def test_the_kept_schema_is_this_versions() -> None:
    """A change of the report changes this file; raise SCHEMA_VERSION if readers depend on it."""
    kept = Path(report_file.__file__).with_name("report.schema.json")
    assert json.loads(kept.read_text(encoding="utf-8")) == schema()


def test_what_was_not_measured_is_told_and_not_a_zero(report: Report, tmp_path: Path) -> None:
    data = written(report, tmp_path)
    exactness = next(suite for suite in data["suites"] if suite["name"] == "exactness")
    assert "log-probabilities" in exactness["unavailable"]["prompt_logprobs"]
    assert "prompt_logprobs" not in {metric["name"] for metric in exactness["metrics"]}
    nothing = build_report(
        [SuiteResult("accuracy", (measured(SHARE, [float("nan")], [1.0]),))],
        endpoints=(), settings={}, versions={}, seed=1, resamples=50,
    )  # fmt: skip
    metric = nothing.suites[0].metrics[0]
    assert (metric.effect.value, metric.items, metric.dropped) == (None, 0, 1)
    assert written(nothing, tmp_path)["suites"][0]["metrics"][0]["effect"]["value"] is None


@pytest.mark.parametrize(
    "suite, measured_names, missing, main",
    [
        ("stability", ["lpr_t0"], ["sound_all"], "sound_all"),
        ("translation", ["chrf_en_ko"], [], "chrf_all"),
        ("latency", ["ttft_mean", "decode_ratio_8"], ["decode_ratio"], "decode_ratio"),
        ("latency", ["ttft_mean"], [], "decode_ratio"),
        ("input", ["saved@0.9", "quality@0.9", "quality@0.8"], [], "quality@0.9"),
        ("memory", ["weights_disk"], ["*"], "weights_loaded"),
        ("of somebody else", ["a", "b"], [], "a"),
    ],
)
def test_a_suite_stands_for_the_metric_that_it_declares_measured_or_not(
    suite: str, measured_names: list[str], missing: list[str], main: str
) -> None:
    sides = [replace(SHARE, name=name) for name in measured_names]
    found = tuple(measured(metric, [1.0], [1.0]) for metric in sides)
    result = _with_main(SuiteResult(suite, found, unavailable=dict.fromkeys(missing, "why")))
    report = build_report([result], endpoints=(), settings={}, versions={}, seed=1, resamples=50)
    assert report.suites[0].main == main


def test_the_summary_says_first_that_a_run_is_incomplete() -> None:
    found = build_report(
        [SuiteResult("latency", (), unavailable={"*": "why"})],
        endpoints=(), settings={}, versions={}, seed=1, incomplete="the pruned server died",
    )  # fmt: skip
    assert found.summary.startswith("incomplete: the pruned server died; ")
    assert found.summary.endswith("not measured: latency")
    assert "informational: " not in found.summary


def test_keys_in_an_address_are_not_written(tmp_path: Path) -> None:
    address = "https://me:sk-secret@host:1234/v1?api_key=sk-other#sk-third"
    endpoint = EndpointReport(name="original", url=address, model="m")
    found = build_report([], endpoints=[endpoint], settings={}, versions={}, seed=1)
    assert found.endpoints[0].url == "https://host:1234/v1"
    write_report(found, tmp_path / "report.json")
    assert b"sk-" not in (tmp_path / "report.json").read_bytes()


def test_latencies_come_with_their_distribution(report: Report) -> None:
    latency = next(suite for suite in report.suites if suite.name == "latency")
    (median,) = [metric for metric in latency.metrics if metric.name == "e2e_p50"]
    assert median.distribution is not None and median.pruned is not None
    assert len(median.distribution.original) == 101
    assert median.distribution.original == sorted(median.distribution.original)
    assert median.distribution.pruned[50] == pytest.approx(median.pruned.value)


@pytest.mark.parametrize(
    "content, mistake",
    [
        (b"", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[1, 2]", "schema version None"),
        (b'{"schema_version": 1, "settings": {"limit": NaN}}', "not JSON"),
        (b'{"schema_version": 99}', "schema version 99"),
        (b'{"schema_version": 1}', "such errors"),
    ],
)
def test_what_is_not_a_report_is_refused(content: bytes, mistake: str, tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_bytes(content)
    with pytest.raises(KPruneError, match=mistake):
        read_report(path)


@pytest.mark.parametrize(
    "change",
    [
        {"surprise": 1},
        {"confidence": "high"},
        {"suites": "none"},
        {"suites": [{}]},
        {"summary": "x" * 30_000},
        {"endpoints": [{"name": "a", "url": "b", "model": "c", "description": {}}] * 21},
    ],
)
def test_a_report_with_something_wrong_in_it_is_refused(
    report: Report, change: dict[str, Any], tmp_path: Path
) -> None:
    path = tmp_path / "report.json"
    path.write_text(json.dumps(written(report, tmp_path) | change), encoding="utf-8")
    with pytest.raises(KPruneError, match="was not written by kprune"):
        read_report(path)


def test_a_report_that_is_too_large_or_missing_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    with pytest.raises(KPruneError, match="cannot be read"):
        read_report(path)
    with path.open("wb") as stream:
        stream.truncate(report_file.MOST_BYTES + 1)
    with pytest.raises(KPruneError, match="larger than 64 MiB"):
        read_report(path)


def test_a_report_that_cannot_be_written_is_a_plain_mistake(report: Report, tmp_path: Path) -> None:
    if os.geteuid() == 0:
        target = tmp_path / "file"
        target.write_bytes(b"")
        target = target / "report.json"
    else:
        tmp_path.chmod(0o500)
        target = tmp_path / "report.json"
    with pytest.raises(KPruneError, match="cannot be written"):
        write_report(report, target)


def example(item: str, first: str, second: str, *spans: Span) -> Example:
    return Example(item, "prompt", (first, second), {}, (spans, ()))


def test_examples_that_tell_something_come_first_and_their_number_is_bounded() -> None:
    same = [example(f"same {at}", "a", "a") for at in range(200)]
    other = example("other", "a", "b")
    marked = example("marked", "a", "a", Span(0, 1, "why"))
    chosen = choose_examples([*same, other, marked])
    assert [one.item for one in chosen[:3]] == ["marked", "other", "same 0"]
    assert len(chosen) == examples.MOST_EXAMPLES


spans = st.lists(st.builds(Span, st.integers(-5, 6000), st.integers(-5, 6000), st.just("why")))


@given(st.text(max_size=40), st.integers(1, 200), spans)
def test_spans_lie_in_order_within_what_is_shown(text: str, times: int, given: list[Span]) -> None:
    answer = text * times
    (chosen,) = choose_examples([example("a", answer, "", *given)])
    end = 0
    for span in chosen.spans[0]:
        assert end <= span.start < span.end <= min(len(answer), examples.MOST_CHARACTERS)
        end = span.end


def test_a_long_text_says_how_much_was_left_out() -> None:
    assert shorten("a" * 5000) == "a" * 4000 + "… [1,000 more characters]"
    assert shorten("짧은 글") == "짧은 글"


def test_half_a_surrogate_pair_from_a_hostile_server_can_be_written(tmp_path: Path) -> None:
    result = SuiteResult("s", (), (example("i", "\ud83c", "\udf72 ok"),), {"m": "\ud800"})
    found = build_report([result], endpoints=(), settings={}, versions={}, seed=1)
    assert written(found, tmp_path)["suites"][0]["examples"][0]["answers"] == ["?", "? ok"]
