"""Build the report of a comparison from the results of its suites.

The report depends on nothing but the arguments (no clock, no file names), so that a run that was
killed and resumed gives the same bytes as an uninterrupted one.
"""

from collections.abc import Mapping, Sequence
from urllib.parse import urlsplit, urlunsplit

from pydantic import JsonValue

from vllm_kprune import __version__
from vllm_kprune.compare.measurements import Example, Measurement, SuiteResult
from vllm_kprune.compare.report.document import (
    SCHEMA_VERSION,
    Distribution,
    EndpointReport,
    ExampleReport,
    Interval,
    MetricReport,
    Report,
    Shown,
    SpanReport,
    SuiteReport,
)
from vllm_kprune.compare.report.examples import choose_examples, shorten
from vllm_kprune.compare.report.plain import sentence
from vllm_kprune.compare.report.sides import side_of, suite_name
from vllm_kprune.compare.statistics.comparison import Comparison, Estimate, compare, correct
from vllm_kprune.compare.statistics.number_format import show_effect, show_value
from vllm_kprune.compare.statistics.pairing import quantiles
from vllm_kprune.compare.statistics.verdicts import Judgement, judge, judge_suite, overall

__all__ = ["build_report"]


def build_report(
    results: Sequence[SuiteResult],
    *,
    endpoints: Sequence[EndpointReport],
    settings: Mapping[str, JsonValue],
    versions: Mapping[str, str],
    seed: int,
    resamples: int = 10_000,
    confidence: float = 0.95,
    incomplete: str | None = None,
    date: str = "",
) -> Report:
    """Compare all measurements, correct for their number, and judge them.

    `incomplete` says why the run ended early, if it did, and `date` when it began.
    """
    # All suites together, because Holm's method needs every p-value of the report.
    comparisons = correct(
        compare(one, seed=seed, resamples=resamples, confidence=confidence)
        for result in results
        for one in result.measurements
    )
    incomplete = shorten(incomplete) if incomplete else None
    # `correct` keeps the order: each suite takes as many as it has measurements.
    rest = iter(comparisons)
    suites = [_suite(result, [next(rest) for _ in result.measurements]) for result in results]
    return Report(
        schema_version=SCHEMA_VERSION,
        kprune_version=__version__,
        summary=_summary(suites, incomplete),
        date=date,
        incomplete=incomplete,
        confidence=confidence,
        resamples=resamples,
        seed=seed,
        settings=dict(settings),
        versions=dict(versions),
        endpoints=[_without_secrets(endpoint) for endpoint in endpoints],
        suites=suites,
    )


def _summary(suites: Sequence[SuiteReport], incomplete: str | None) -> str:
    """The report in one sentence, or one for each pruned side if there are several."""
    sides = list(dict.fromkeys(side_of(suite.name)[1] for suite in suites)) or [""]
    parts = []
    for number, side in enumerate(sides):
        named = [(name, one) for one in suites for name, of in [side_of(one.name)] if of == side]
        text = overall(
            [(name, one.verdict) for name, one in named if one.metrics],
            unmeasured=[name for name, one in named if not one.metrics],
            incomplete=None if number else incomplete,
        )
        parts.append(f"{side}: {text}" if side else text)
    return ". ".join(parts)


def _without_secrets(endpoint: EndpointReport) -> EndpointReport:
    """The endpoint without the user, password and query of its URL, which may hold keys."""
    parts = urlsplit(endpoint.url)
    # From the last @ on: a password may contain one.
    host = parts.netloc.rpartition("@")[2]
    url = urlunsplit((parts.scheme, host, parts.path, "", ""))
    return endpoint.model_copy(update={"url": url})


def _suite(result: SuiteResult, comparisons: Sequence[Comparison]) -> SuiteReport:
    judgements = [judge(comparison, result.more) for comparison in comparisons]
    titles = [measurement.metric.title for measurement in result.measurements]
    judgement = judge_suite(list(zip(titles, judgements, strict=True)))
    metrics = [
        _metric(*of_one)
        for of_one in zip(result.measurements, comparisons, judgements, strict=True)
    ]
    name = result.main or next((metric.name for metric in metrics), None)
    main = next((metric for metric in metrics if metric.name == name), None)
    return SuiteReport(
        name=suite_name(result.suite, result.side),
        main=name,
        sentence=shorten(sentence(result, main)),
        verdict=judgement.verdict,
        words=judgement.words,
        items_needed=judgement.items_needed,
        metrics=metrics,
        unavailable={
            name: shorten(why.removeprefix("not measured: "))
            for name, why in result.unavailable.items()
        },
        notes=[shorten(note) for note in result.notes],
        examples=[_example(example) for example in choose_examples(result.examples)],
        examples_total=len(result.examples),
    )


def _metric(measurement: Measurement, comparison: Comparison, judgement: Judgement) -> MetricReport:
    metric, pruned = comparison.metric, comparison.pruned
    # One curve for each set of timings: p50, p95 and p99 have the same values.
    both = quantiles(measurement) if metric.aggregate == "p50" else None
    return MetricReport(
        name=metric.name,
        title=metric.title,
        unit=metric.unit,
        better=metric.better,
        margin=metric.margin,
        aggregate=metric.aggregate,
        effect_kind=metric.effect,
        items=comparison.n,
        dropped=comparison.dropped,
        differing=comparison.differing,
        original=_interval(comparison.original),
        pruned=_interval(pruned) if pruned else None,
        effect=_interval(comparison.effect),
        p=comparison.p,
        p_adjusted=comparison.p_adjusted,
        verdict=judgement.verdict,
        words=judgement.words,
        items_needed=judgement.items_needed,
        shown=_shown(comparison),
        detail=metric.detail,
        distribution=Distribution(original=both[0], pruned=both[1]) if both else None,
    )


def _interval(estimate: Estimate) -> Interval:
    return Interval(value=estimate.value, low=estimate.low, high=estimate.high)


def _shown(comparison: Comparison) -> Shown:
    metric, pruned = comparison.metric, comparison.pruned
    return Shown(
        original=show_value(comparison.original.value, metric.unit),
        pruned=show_value(pruned.value, metric.unit) if pruned else None,
        effect=show_effect(comparison.effect, metric, of_pair=pruned is None),
    )


def _example(example: Example) -> ExampleReport:
    def spans(side: int) -> list[SpanReport]:
        return [
            SpanReport(start=span.start, end=span.end, why=span.why) for span in example.spans[side]
        ]

    return ExampleReport(
        item=example.item,
        prompt=example.prompt,
        answers=example.answers,
        labels=dict(example.labels),
        spans=(spans(0), spans(1)),
        reference=example.reference,
    )
