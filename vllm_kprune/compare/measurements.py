"""The values that the stages of a comparison pass on.

A suite sends the same work to both endpoints and turns the answers into `Measurement`s. The
statistics turn each measurement into a `Comparison`, and the report holds both. Wherever two sides
come in order, the original is first and the pruned model second.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from vllm_kprune.arrays import Floats

__all__ = ["Example", "Floats", "Measurement", "Metric", "Span", "SuiteResult"]


@dataclass(frozen=True)
class Metric:
    """What one number of a suite means.

    `aggregate` names how the features of all items become that number: a row of the table in
    `statistics/aggregates.py` (mean, ratio of sums, quantile, BLEU, ...). `margin` is the largest
    difference that still counts as equal, in the metric's unit, or relative if `effect` is `ratio`.
    `better` is `neither` for informational metrics, which get no verdict. `detail` marks those of
    them that a reader may fold away, such as the result of a single language.
    """

    name: str
    title: str
    unit: str
    better: Literal["higher", "lower", "neither"]
    margin: float
    aggregate: str = "mean"
    effect: Literal["difference", "ratio"] = "difference"
    detail: bool = False


@dataclass(frozen=True)
class Measurement:
    """Features of the same items on both sides, [items, features].

    The item is the unit of resampling: a prompt with all its samples, or a round of requests, never
    a single sample. `pruned` is None for a metric of the pair itself, such as the share of
    identical answers.
    """

    # Columns: 1 for a mean, 2 for a ratio (above, below), 10 for BLEU; see `AGGREGATES`.
    metric: Metric
    items: tuple[str, ...]
    original: Floats
    pruned: Floats | None


@dataclass(frozen=True)
class Span:
    """Characters `start` to `end` of an answer that the report highlights, and why."""

    start: int
    end: int
    why: str


@dataclass(frozen=True)
class Example:
    """Both answers to one item, shown side by side in the report.

    The report's filters use `labels`: language, temperature, or a verdict such as `different`.
    """

    item: str
    prompt: str
    answers: tuple[str, str]
    labels: Mapping[str, str] = field(default_factory=dict)
    spans: tuple[tuple[Span, ...], tuple[Span, ...]] = ((), ())
    reference: str | None = None


@dataclass(frozen=True)
class SuiteResult:
    """The outcome of one suite.

    `unavailable` maps the name of a metric (or `*` for the whole suite) to the reason why it could
    not be measured. A missing measurement is never reported as zero. `main` names the metric that
    stands for the suite, whether or not it was measured; None means the first one. `more` is the
    option that gives more items, for verdicts of "not enough data". `side` names the pruned side
    where there are several.
    """

    suite: str
    measurements: tuple[Measurement, ...]
    examples: tuple[Example, ...] = ()
    # A gate on one of these names fails with the reason (`gate._by_name`).
    unavailable: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    main: str | None = None
    more: str = ""
    side: str = ""
