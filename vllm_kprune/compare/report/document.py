"""The contents of `report.json`: the schema, with bounds on everything that comes from outside.

The schema has a version, and readers refuse any other. `build.py` fills it in.
"""

from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from vllm_kprune.compare.statistics.verdicts import Verdict

__all__ = [
    "SCHEMA_VERSION",
    "Distribution",
    "EndpointReport",
    "ExampleReport",
    "Interval",
    "MetricReport",
    "Report",
    "Shown",
    "SpanReport",
    "SuiteReport",
]

SCHEMA_VERSION: Final = 1
Name = Annotated[str, Field(max_length=200)]
Text = Annotated[str, Field(max_length=20_000)]
Names = Annotated[dict[Name, Text], Field(max_length=500)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Interval(_Part):
    """A score with its confidence interval; null where the data do not determine it."""

    value: float | None
    low: float | None
    high: float | None


class Shown(_Part):
    """The scores and the effect of a metric as text."""

    original: Name
    pruned: Name | None
    effect: Name


class Distribution(_Part):
    """Quantiles of both sides in equal steps, from the smallest value to the largest."""

    original: Annotated[list[float], Field(max_length=1000)]
    pruned: Annotated[list[float], Field(max_length=1000)]


class MetricReport(_Part):
    """One metric; `Comparison` and `Metric` explain the fields."""

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
    """Characters (Unicode code points) of an answer that are highlighted, and why."""

    start: int
    end: int
    why: Name


class ExampleReport(_Part):
    """Both answers to one item. Long ones are cut; the journal has them in full."""

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
    """One suite: its metrics, which of them stands for it (measured or not), and what is missing.

    With several pruned sides there is one for each of them, and `name` ends in its name:
    `stability@guarded`. `unavailable` gives the reason for each metric that could not be measured,
    and `sentence` says in plain words what the main metric found.
    """

    name: Name
    main: Name | None = None
    verdict: Verdict
    words: Name
    sentence: Text = ""
    items_needed: int | None
    metrics: Annotated[list[MetricReport], Field(max_length=500)]
    unavailable: Names
    notes: Annotated[list[Text], Field(max_length=200)]
    examples: Annotated[list[ExampleReport], Field(max_length=500)]
    examples_total: int


class EndpointReport(_Part):
    """An endpoint: its model, and its own description (versions, profile, missing abilities)."""

    name: Name
    url: Name
    model: Name
    description: Names = {}


class Report(_Part):
    """A whole comparison; `incomplete` says why the run ended early, if it did.

    `date` is the day on which the run began.
    """

    # Must follow SCHEMA_VERSION: a Literal cannot name a variable.
    schema_version: Literal[1]
    kprune_version: Name
    summary: Text
    date: Name = ""
    incomplete: Text | None = None
    confidence: float
    resamples: int
    seed: int
    settings: dict[str, JsonValue]
    versions: Names
    endpoints: Annotated[list[EndpointReport], Field(max_length=20)]
    suites: Annotated[list[SuiteReport], Field(max_length=400)]
