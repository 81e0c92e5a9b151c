"""What the stages of a comparison hand to each other.

A suite sends work to both endpoints and turns the answers into `Measurement`s; statistics turn a
measurement into a `Comparison`; the report writes suites and comparisons down. Sides are always in
this order: original, pruned.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

__all__ = ["Example", "Measurement", "Metric", "Span", "SuiteResult"]

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Metric:
    """One figure of a suite.

    `aggregate` names how the features of items become one figure (a row of the table in
    `statistics.py`: mean, ratio of sums, harmonic mean, quantile, BLEU, ...). `margin` is the
    difference that still counts as equal, in the metric's unit (or relative, for the effect
    `ratio`). `better` is `neither` for figures that are only told; `detail` marks those of them
    that readers may fold away: the figure of one language, or of one quantile.
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
    """Features of the same items on both sides, [items, features]; the unit of resampling is the
    item (a prompt with all its samples, a round), never the single sample.

    `pruned` is None for a metric of the pair itself, such as the share of identical answers.
    """

    metric: Metric
    items: tuple[str, ...]
    original: Floats
    pruned: Floats | None


@dataclass(frozen=True)
class Span:
    """Characters `start` to `end` of an answer that the reader should see, and why."""

    start: int
    end: int
    why: str


@dataclass(frozen=True)
class Example:
    """Both answers to one item, side by side in the report; `labels` is what filters go by
    (language, temperature, a verdict such as `different`)."""

    item: str
    prompt: str
    answers: tuple[str, str]
    labels: Mapping[str, str] = field(default_factory=dict)
    spans: tuple[tuple[Span, ...], tuple[Span, ...]] = ((), ())
    reference: str | None = None


@dataclass(frozen=True)
class SuiteResult:
    """What one suite found; `unavailable` maps a metric's name (or `*`) to the reason why it could
    not be measured, which is never written as a zero.

    `main` names the metric that the suite stands for, measured or not; None: the first one.
    """

    suite: str
    measurements: tuple[Measurement, ...]
    examples: tuple[Example, ...] = ()
    unavailable: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    main: str | None = None
