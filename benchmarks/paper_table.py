"""The table of the paper's experiment, from the reports of its comparisons."""

import json
from collections.abc import Iterator, Mapping
from itertools import groupby
from pathlib import Path

from vllm_kprune.compare.report.document import Interval, MetricReport, Report
from vllm_kprune.compare.statistics.number_format import show_value

__all__ = ["Reports", "table", "write_table"]

Reports = dict[tuple[str, str], Report]  # by model and profile
# Title of a column, with the suite and name of the metric that it shows.
COLUMNS = (
    ("weights", "memory", "weights_loaded"),
    ("processes", "memory", "processes"),
    ("stability T=0", "stability", "lcpr_t0"),
    ("stability T=1", "stability", "lcpr_t1"),
    ("foreign script T=1", "stability", "foreign_t1"),
    ("chrF++ en→ko", "translation", "chrf_en_ko"),
    ("chrF++ ko→en", "translation", "chrf_ko_en"),
    ("accuracy", "accuracy", "all"),
    ("decode speed", "latency", "decode_ratio"),
)


def write_table(reports: Reports, folder: Path) -> Path:
    """Write `paper.md` and `paper.json`; return the first."""
    folder.mkdir(parents=True, exist_ok=True)
    found = {
        model: {
            profile: reports[model, profile].model_dump(mode="json", exclude={"suites": _NO_TEXTS})
            for _, profile in keys
        }
        for model, keys in groupby(reports, key=lambda key: key[0])
    }
    text = json.dumps(found, ensure_ascii=False, indent=1)
    (folder / "paper.json").write_text(f"{text}\n", encoding="utf-8")
    (folder / "paper.md").write_text("\n".join([*table(reports), ""]), encoding="utf-8")
    return folder / "paper.md"


_NO_TEXTS = {"__all__": {"examples": True}}


def table(reports: Reports) -> Iterator[str]:
    """Markdown: a table of configurations, then every metric with its effect and verdict."""
    yield from line_of("model", "configuration", "vocabulary", *(title for title, *_ in COLUMNS))
    yield from line_of(*["---"] * (3 + len(COLUMNS)))
    for model, keys in groupby(reports, key=lambda key: key[0]):
        of_model = {profile: reports[model, profile] for _, profile in keys}
        yield from configurations(model, of_model)
    yield ""
    yield (
        "Values have 95 % intervals (bootstrap over items, both sides of an item together). The "
        "original was measured along with each pruned model; its row is from the first comparison."
    )
    for model, keys in groupby(reports, key=lambda key: key[0]):
        yield from metrics(model, {profile: reports[model, profile] for _, profile in keys})


def configurations(model: str, reports: Mapping[str, Report]) -> Iterator[str]:
    first = next(iter(reports.values()))
    cells = [shown(found(first, *where), 0) for _, *where in COLUMNS]
    yield from line_of(model, "original", tokens(first, 1), *cells)
    for profile, report in reports.items():
        cells = [shown(found(report, *where), 1) for _, *where in COLUMNS]
        yield from line_of(model, profile, tokens(report, 0), *cells)


def metrics(model: str, reports: Mapping[str, Report]) -> Iterator[str]:
    """A line for each metric of the reports: the original's value, effects and verdicts."""
    names = {
        (suite.name, metric.name): metric.title
        for report in reports.values()
        for suite in report.suites
        for metric in suite.metrics
    }
    yield from ("", f"### {model}: pruned against original", "")
    yield from line_of("suite", "metric", "items", "original", *reports)
    yield from line_of(*["---"] * (4 + len(reports)))
    for (suite, name), title in names.items():
        rows = [found(report, suite, name) for report in reports.values()]
        one = next(row for row in rows if row is not None)
        effects = ["" if row is None else f"{row.shown.effect} ({row.words})" for row in rows]
        yield from line_of(suite, title, str(one.items), one.shown.original, *effects)


def found(report: Report, suite: str, metric: str) -> MetricReport | None:
    rows = (row for one in report.suites if one.name == suite for row in one.metrics)
    return next((row for row in rows if row.name == metric), None)


def shown(metric: MetricReport | None, side: int) -> str:
    """The value of one side with its interval."""
    interval = metric and (metric.original, metric.pruned)[side]
    if metric is None or interval is None:
        return "not measured"
    return show_value(interval.value, metric.unit) + ends(interval, metric.unit)


def ends(interval: Interval, unit: str) -> str:
    if interval.low is None or interval.high is None or interval.low == interval.high:
        return ""
    return f" [{show_value(interval.low, unit)}, {show_value(interval.high, unit)}]"


def tokens(report: Report, whole: int) -> str:
    """The kept tokens, or all, of `79048 of 151665` as the pruned server reports them."""
    counts = report.endpoints[1].description.get("tokens", "").split(" of ")
    return f"{int(counts[whole]):,}" if len(counts) == 2 and counts[whole].isdecimal() else "?"


def line_of(*cells: str) -> Iterator[str]:
    yield f"| {' | '.join(cells)} |"
