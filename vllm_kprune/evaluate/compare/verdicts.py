"""Verdicts in words: better, equal within d, worse, or not enough data; per metric and per suite.

- *equal*: the whole interval lies within the margin, however sure a tiny difference is.
- *better*, *worse*: otherwise, if the p-value that Holm's method adjusted over the whole report
  is below 1 - confidence.
- *not enough data*: otherwise, with about how many items would settle it.
- *told*: a figure without a better side, or of the pair itself.

Fewer than 6 items get no verdict: even if all point one way, the exact test cannot fall below 5 %.
A figure that is counted (`exact`) is what it is: it is equal within its margin, or it is not.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import ceil, inf, log, log1p
from typing import Literal

from vllm_kprune.evaluate.compare.aggregates import AGGREGATES
from vllm_kprune.evaluate.compare.figures import show_margin
from vllm_kprune.evaluate.compare.statistics import Comparison, rule_of_three

__all__ = ["MIN_ITEMS", "Judgement", "Verdict", "judge", "judge_suite", "overall"]

Verdict = Literal["better", "equal", "worse", "not enough data", "told"]
MIN_ITEMS = 6
_MOST_ITEMS = 1_000_000


@dataclass(frozen=True)
class Judgement:
    """A verdict, the same in words, and how many items would be needed for one."""

    verdict: Verdict
    words: str
    items_needed: int | None = None


def judge(comparison: Comparison) -> Judgement:
    """The verdict on one metric, after `correct`."""
    metric = comparison.metric
    if comparison.pruned is None or metric.better == "neither":
        return Judgement("told", "told, not judged")
    if AGGREGATES[metric.aggregate].sampled and comparison.n < MIN_ITEMS:
        return _open(comparison, MIN_ITEMS)
    margins, ends, value = _on_scale(comparison)
    if value is None or ends is None:
        return _open(comparison, None)
    if margins[0] <= ends[0] and ends[1] <= margins[1]:
        within = f" within {show_margin(metric)}" if metric.margin else ""
        return Judgement("equal", f"equal{within}")
    p = 0.0 if not AGGREGATES[metric.aggregate].sampled else comparison.p_adjusted
    if p is not None and p < 1 - comparison.confidence and value:
        good = (value > 0) == (metric.better == "higher")
        return Judgement("better", "better") if good else Judgement("worse", "worse")
    return _open(comparison, _needed(comparison))


def _open(comparison: Comparison, needed: int | None) -> Judgement:
    have = f"not enough data ({comparison.n} items"
    if needed is None:
        return Judgement("not enough data", f"{have})")
    if needed > _MOST_ITEMS:
        return Judgement("not enough data", f"{have}; over a million needed)")
    return Judgement("not enough data", f"{have}; about {_about(needed)} needed)", needed)


def _about(items: int) -> str:
    """Rounded up to two digits: nobody can know it better."""
    step = 10 ** max(0, len(str(items)) - 2)
    return f"{ceil(items / step) * step:,}"


Ends = tuple[float, float]


def _on_scale(comparison: Comparison) -> tuple[Ends, Ends | None, float | None]:
    """Margins, interval and effect on a scale where 0 is equal: ratios as logarithms."""
    metric, effect = comparison.metric, comparison.effect
    numbers = effect.value, effect.low, effect.high
    margins = (-metric.margin, metric.margin)
    if metric.effect == "ratio":
        margins = (-log1p(metric.margin), log1p(metric.margin))
        numbers = tuple(None if not number else log(number) for number in numbers)  # type: ignore[assignment]
    value, low, high = numbers
    return margins, None if low is None or high is None else (low, high), value


def _needed(comparison: Comparison) -> int | None:
    """About how many items make the interval narrow enough to tell equal from different, whichever
    comes first; widths fall with the square root of the number of items."""
    margins, ends, value = _on_scale(comparison)
    if ends is None or value is None:
        return None
    half, margin = (ends[1] - ends[0]) / 2, margins[1]
    if comparison.differing == 0:
        return _needed_unseen(comparison, margin / half if half else inf)
    factors = [half / size for size in (margin - abs(value), abs(value)) if size > 0]
    if not factors:
        return None
    return max(comparison.n + 1, ceil(comparison.n * min(factors) ** 2))


def _needed_unseen(comparison: Comparison, allowed: float) -> int | None:
    """The same where no item differed, and only `rule_of_three` makes the interval wide."""
    share = rule_of_three(comparison.n, comparison.confidence) * allowed
    if not 0 < share < 1:
        return None
    return max(comparison.n + 1, ceil(log((1 - comparison.confidence) / 2) / log1p(-share)))


def judge_suite(judgements: Sequence[Judgement]) -> Judgement:
    """One verdict for a suite: its worst metric counts, then its best; equal only if all are.

    So a suite with any metric worse is worse: who decides to ship should look at it first.
    """
    counts = Counter(judgement.verdict for judgement in judgements)
    del counts["told"]
    total = sum(counts.values())
    if not total:
        return Judgement("told", "told, not judged" if judgements else "not measured")
    order: tuple[Verdict, ...] = ("worse", "better", "not enough data", "equal")
    verdict = next(name for name in order if counts[name])
    needed = max((judgement.items_needed or 0 for judgement in judgements), default=0)
    if total == 1 or counts[verdict] == total == 1:
        return next(one for one in judgements if one.verdict != "told")
    words = ", ".join(f"{name} in {counts[name]}" for name in order if counts[name])
    return Judgement(verdict, f"{words} of {total} metrics", needed or None)


def overall(verdicts: Iterable[tuple[str, Verdict]]) -> str:
    """The report in one sentence: suites by verdict, the worst first."""
    order: tuple[Verdict, ...] = ("worse", "better", "equal", "not enough data")
    found = list(verdicts)
    parts = []
    for verdict in order:
        names = [suite for suite, one in found if one == verdict]
        if names:
            parts.append(f"{verdict}: {', '.join(names)}")
    return "; ".join(parts) or "nothing was judged"
