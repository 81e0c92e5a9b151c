"""The report of a comparison: what `report.json` holds, and how it is built.

It depends on nothing but its inputs (no clock, no names of files), so that a run that was killed
and resumed gives the same bytes as an unbroken one. The schema has a version; readers refuse
another.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Final, Literal
from urllib.parse import urlsplit, urlunsplit

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from vllm_kprune import __version__
from vllm_kprune.compare import measurements as values
from vllm_kprune.compare.report.examples import choose_examples, shorten
from vllm_kprune.compare.statistics.comparison import Comparison, Estimate, compare, correct
from vllm_kprune.compare.statistics.number_format import show_effect, show_figure
from vllm_kprune.compare.statistics.pairing import quantiles
from vllm_kprune.compare.statistics.verdicts import Judgement, Verdict, judge, judge_suite, overall

__all__ = [
    "SCHEMA_VERSION",
    "EndpointFacts",
    "ExampleReport",
    "MetricReport",
    "Report",
    "SuiteReport",
    "build_report",
]

SCHEMA_VERSION: Final = 1
Name = Annotated[str, Field(max_length=200)]
Text = Annotated[str, Field(max_length=20_000)]
Names = Annotated[dict[Name, Text], Field(max_length=500)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Interval(_Part):
    """A figure with its confidence interval; null for what the data cannot tell."""

    value: float | None
    low: float | None
    high: float | None


class Shown(_Part):
    """The figures of a metric as text."""

    original: Name
    pruned: Name | None
    effect: Name


class Distribution(_Part):
    """Quantiles of both sides, from the least value to the largest in equal steps."""

    original: Annotated[list[float], Field(max_length=1000)]
    pruned: Annotated[list[float], Field(max_length=1000)]


class MetricReport(_Part):
    """One metric; `Comparison` and `Metric` say what the fields mean."""

    name: Name
    title: Name
    unit: Name
    better: Literal["higher", "lower", "neither"]
    margin: float
    aggregate: Name
    effect_kind: Literal["difference", "ratio"]
    items: int
    dropped: int
    differing: int
    original: Interval
    pruned: Interval | None
    effect: Interval
    p: float | None
    p_adjusted: float | None
    verdict: Verdict
    words: Name
    items_needed: int | None
    shown: Shown
    detail: bool = False
    distribution: Distribution | None = None


class SpanReport(_Part):
    """Characters (Unicode code points) of an answer to be highlighted, and why."""

    start: int
    end: int
    why: Name


class ExampleReport(_Part):
    """Both answers to one item; long ones are cut, the journal has them whole."""

    item: Name
    prompt: Text
    answers: tuple[Text, Text]
    labels: Annotated[dict[Name, Name], Field(max_length=30)]
    spans: tuple[
        Annotated[list[SpanReport], Field(max_length=200)],
        Annotated[list[SpanReport], Field(max_length=200)],
    ]
    reference: Text | None


class SuiteReport(_Part):
    """One suite: its metrics, which of them it stands for (measured or not), and what could not be
    measured."""

    name: Name
    main: Name | None = None
    verdict: Verdict
    words: Name
    items_needed: int | None
    metrics: Annotated[list[MetricReport], Field(max_length=500)]
    unavailable: Names
    notes: Annotated[list[Text], Field(max_length=200)]
    examples: Annotated[list[ExampleReport], Field(max_length=500)]
    examples_total: int


class EndpointFacts(_Part):
    """An endpoint: what it serves, and what it told about itself (versions, profile, hardware)."""

    name: Name
    url: Name
    model: Name
    facts: Names = {}


class Report(_Part):
    """A whole comparison."""

    schema_version: Literal[1]
    kprune_version: Name
    summary: Text
    confidence: float
    resamples: int
    seed: int
    settings: dict[str, JsonValue]
    versions: Names
    endpoints: Annotated[list[EndpointFacts], Field(max_length=2)]
    suites: Annotated[list[SuiteReport], Field(max_length=100)]


def build_report(
    results: Sequence[values.SuiteResult],
    *,
    endpoints: Sequence[EndpointFacts],
    settings: Mapping[str, JsonValue],
    versions: Mapping[str, str],
    seed: int,
    resamples: int = 10_000,
    confidence: float = 0.95,
    incomplete: str | None = None,
) -> Report:
    """Compare all measurements, correct over all of them, and judge; `incomplete` says why the run
    ended before its time."""
    comparisons = correct(
        compare(one, seed=seed, resamples=resamples, confidence=confidence)
        for result in results
        for one in result.measurements
    )
    rest = iter(comparisons)
    suites = [_suite(result, [next(rest) for _ in result.measurements]) for result in results]
    return Report(
        schema_version=SCHEMA_VERSION,
        kprune_version=__version__,
        summary=overall(
            [(suite.name, suite.verdict) for suite in suites if suite.metrics],
            unmeasured=[suite.name for suite in suites if not suite.metrics],
            incomplete=incomplete and shorten(incomplete),
        ),
        confidence=confidence,
        resamples=resamples,
        seed=seed,
        settings=dict(settings),
        versions=dict(versions),
        endpoints=[_without_secrets(endpoint) for endpoint in endpoints],
        suites=suites,
    )


def _without_secrets(endpoint: EndpointFacts) -> EndpointFacts:
    """The endpoint without user, password and query of its address, where keys may be."""
    parts = urlsplit(endpoint.url)
    host = parts.netloc.rpartition("@")[2]
    url = urlunsplit((parts.scheme, host, parts.path, "", ""))
    return endpoint.model_copy(update={"url": url})


def _suite(result: values.SuiteResult, comparisons: Sequence[Comparison]) -> SuiteReport:
    judgements = [judge(comparison) for comparison in comparisons]
    titles = [measurement.metric.title for measurement in result.measurements]
    judgement = judge_suite(list(zip(titles, judgements, strict=True)))
    metrics = [
        _metric(*of_one)
        for of_one in zip(result.measurements, comparisons, judgements, strict=True)
    ]
    return SuiteReport(
        name=result.suite,
        main=result.main or next((metric.name for metric in metrics), None),
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


def _metric(
    measurement: values.Measurement, comparison: Comparison, judgement: Judgement
) -> MetricReport:
    metric, pruned = comparison.metric, comparison.pruned
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
        original=show_figure(comparison.original.value, metric.unit),
        pruned=show_figure(pruned.value, metric.unit) if pruned else None,
        effect=show_effect(comparison.effect, metric, of_pair=pruned is None),
    )


def _example(example: values.Example) -> ExampleReport:
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
