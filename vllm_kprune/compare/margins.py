"""Margins of a user: the largest difference that still counts as equal, by metric.

    --margin stability=0.03          the main metric of a suite: 3 percentage points
    --margin latency.ttft_p50=0.1    a metric, here a ratio: 10 %

They change how answers are judged, not what is asked, so a run that is judged again may have
others.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from math import isfinite

from vllm_kprune.compare.measurements import Measurement, SuiteResult
from vllm_kprune.errors import KPruneError, shown

__all__ = ["Margin", "parse_margins", "with_margins"]

_MARGIN = re.compile(
    r"(?P<name>[a-z0-9_@-]+(?:\.[a-z0-9_@.-]+)?)=(?P<number>[0-9]{1,12}(?:\.[0-9]{1,12})?)"
)


@dataclass(frozen=True)
class Margin:
    """One margin, in the metric's unit; `name` is a suite, a metric, or both with a point."""

    text: str
    name: str
    value: float


def parse_margins(texts: Iterable[str]) -> tuple[Margin, ...]:
    """Read margins; `KPruneError` for anything but NAME=NUMBER."""
    return tuple(_parse(text.strip()) for text in texts)


def _parse(text: str) -> Margin:
    found = _MARGIN.fullmatch(text)
    value = float(found["number"]) if found else 0.0
    if not found or not isfinite(value):
        raise KPruneError(
            f"--margin {shown(text)} cannot be read; expected NAME=NUMBER, such as stability=0.03 "
            "for 3 percentage points"
        )
    return Margin(text, found["name"], value)


def with_margins(results: Iterable[SuiteResult], margins: Sequence[Margin]) -> list[SuiteResult]:
    """The results with these margins; of two for one metric, the later holds."""

    def changed(result: SuiteResult, one: Measurement) -> Measurement:
        name, suite = one.metric.name, result.suite
        names = {name, f"{suite}.{name}", *([suite] if name == result.main else [])}
        values = [margin.value for margin in margins if margin.name in names]
        return replace(one, metric=replace(one.metric, margin=values[-1])) if values else one

    return [replace(r, measurements=tuple(changed(r, m) for m in r.measurements)) for r in results]
