"""Verdicts in words, for each metric and each suite.

- *equal*: the whole interval lies within the margin, even if a tiny difference is significant.
- *better*, *worse*: otherwise, if the p-value, adjusted by Holm's method over the whole report, is
  below 1 - confidence.
- *not enough data*: otherwise, with an estimate of how many items would settle it, and how to get
  them. Where the interval of this metric alone excludes 0, it says "not after correction".
- *informational*: the metric has no better side, or belongs to the pair itself.

Fewer than 6 items get neither an interval nor a verdict: even if all of them point the same way,
the p-value of the exact test cannot fall below 5 %. Values that are counted rather than sampled
(`exact`) need no test: they are equal within their margin, or they are not.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import ceil, inf, log, log1p
from statistics import NormalDist
from typing import Literal

from vllm_kprune.compare.statistics.aggregates import AGGREGATES
from vllm_kprune.compare.statistics.comparison import Comparison
from vllm_kprune.compare.statistics.intervals import MIN_ITEMS, rule_of_three, values_needed
from vllm_kprune.compare.statistics.number_format import show_margin

__all__ = ["Judgement", "Verdict", "judge", "judge_suite", "overall"]

_ROOM_FOR_TITLES = 100  # characters
Verdict = Literal["better", "equal", "worse", "not enough data", "informational"]
_MOST_ITEMS = 1_000_000
_ORDER: tuple[Verdict, ...] = ("worse", "better", "not enough data", "equal")


@dataclass(frozen=True)
class Judgement:
    """A verdict, the verdict in words, and how many items would be needed to reach one."""

    verdict: Verdict
    words: str
    items_needed: int | None = None


def judge(comparison: Comparison, more: str = "") -> Judgement:
    """The verdict on one metric, after `correct`; `more` is the option that gives more items."""
    metric = comparison.metric
    if comparison.pruned is None or metric.better == "neither":
        return Judgement("informational", "informational")
    if AGGREGATES[metric.aggregate].sampled and comparison.n < MIN_ITEMS:
        return _undecided(MIN_ITEMS, more)
    margin, value, ends = _on_scale(comparison)
    if value is None or ends is None:
        return _undecided(_needed_for_quantile(comparison), more)
    if -margin <= ends[0] and ends[1] <= margin:
        within = f" within {show_margin(metric)}" if metric.margin else ""
        return Judgement("equal", f"equal{within}")
    # Values that are counted have no sampling error, so any difference is certain.
    p = 0.0 if not AGGREGATES[metric.aggregate].sampled else comparison.p_adjusted
    # `and value`: an effect of exactly 0 has no direction.
    verdict: Verdict = "better" if (value > 0) == (metric.better == "higher") else "worse"
    if p is not None and p < 1 - comparison.confidence and value:
        return Judgement(verdict, verdict)
    alone = f": {verdict}, but not after correction" if ends[0] > 0 or ends[1] < 0 else ""
    return _undecided(_needed(comparison), more, alone)


def _undecided(needed: int | None, more: str, alone: str = "") -> Judgement:
    words = f"not enough data{alone}"
    if needed is None:
        return Judgement("not enough data", words)
    about = "over a million" if needed > _MOST_ITEMS else f"about {_about(needed)}"
    how = f": {more}" if more else ""
    return Judgement("not enough data", f"{words} ({about} items needed{how})", needed)


def _about(items: int) -> str:
    """The number rounded up to two digits, as the estimate is no more exact than that."""
    step = 10 ** max(0, len(str(items)) - 2)  # 1,234 has the step 100 and becomes 1,300
    return f"{ceil(items / step) * step:,}"


def _on_scale(comparison: Comparison) -> tuple[float, float | None, tuple[float, float] | None]:
    """Margin, effect and interval on a scale where 0 means equal: ratios as logarithms."""
    ratio = comparison.metric.effect == "ratio"
    effect, margin = comparison.effect, comparison.metric.margin
    value, low, high = (_scaled(one, ratio) for one in (effect.value, effect.low, effect.high))
    ends = None if low is None or high is None else (low, high)
    # A margin of 0.02 allows ratios from 1 / 1.02 to 1.02, the same distance to both sides.
    return log1p(margin) if ratio else margin, value, ends


def _scaled(number: float | None, ratio: bool) -> float | None:
    if number is None or not ratio:
        return number
    return log(number) if number > 0 else None


def _needed(comparison: Comparison) -> int | None:
    """Roughly how many items would settle whether the sides are equal or different.

    Intervals narrow with the square root of the number of items, and the normal quantile of a
    p-value grows with it. With 100 items, an effect of 0.01 +- 0.04 and a margin of 0.02, the
    interval must shrink to +- 0.01 to lie within the margin, which takes (0.04 / 0.01)**2 = 16
    times the items: 1,600.
    """
    margin, value, ends = _on_scale(comparison)
    if value is None or ends is None:
        return None
    half = (ends[1] - ends[0]) / 2
    if comparison.differing == 0:
        return _needed_unseen(comparison, margin / half if half else inf)
    factors = [_to_be_significant(comparison)]
    if margin > abs(value):
        factors.append((half / (margin - abs(value))) ** 2)
    # Whichever verdict comes first: equal within the margin, or different.
    most = min(factors) * comparison.n
    return max(comparison.n + 1, ceil(most)) if most < inf else None


def _to_be_significant(comparison: Comparison) -> float:
    """By what factor the number of items must grow for this effect to become significant.

    With p = 0.10 and a required 0.05, the normal quantiles are 1.64 and 1.96, and the factor is
    (1.96 / 1.64)**2 = 1.42. Holm's method requires less than 0.05 of the smaller p-values.
    """
    p, adjusted = comparison.p, comparison.p_adjusted
    if p is None or not adjusted or p >= 1:
        return inf
    # Holm multiplied p by adjusted / p, so p itself must fall below the level divided by that.
    asked = (1 - comparison.confidence) * p / adjusted
    have, need = (-NormalDist().inv_cdf(one / 2) for one in (p, asked))
    return (need / have) ** 2 if have > 0 else inf


def _needed_for_quantile(comparison: Comparison) -> int | None:
    """How many items have as many values as an interval of this quantile needs."""
    quantile = AGGREGATES[comparison.metric.aggregate].quantile
    if quantile is None or not comparison.num_values:
        return None
    factor = values_needed(quantile, comparison.confidence) / comparison.num_values
    return max(comparison.n + 1, ceil(comparison.n * factor))


def _needed_unseen(comparison: Comparison, allowed: float) -> int | None:
    """The same where no item differs, and the interval is wide only because of `rule_of_three`."""
    share = rule_of_three(comparison.n, comparison.confidence) * allowed
    if not 0 < share < 1:
        return None
    # `rule_of_three` solved for the number of items.
    return max(comparison.n + 1, ceil(log(1 - comparison.confidence) / log1p(-share)))


def judge_suite(judgements: Sequence[tuple[str, Judgement]]) -> Judgement:
    """One verdict for a suite, from the titles and verdicts of its metrics.

    A suite with any worse metric is worse, since whoever decides to ship should look at it first.
    Otherwise a better metric decides, and a suite is equal only if all its metrics are.
    """
    judged = [(title, one) for title, one in judgements if one.verdict != "informational"]
    if not judged:
        return Judgement("informational", "informational" if judgements else "not measured")
    if len(judged) == 1:
        return judged[0][1]
    counts = Counter(one.verdict for _, one in judged)
    verdict = next(name for name in _ORDER if counts[name])
    needed = max(one.items_needed or 0 for _, one in judged)
    words = ", ".join(_count(name, judged) for name in _ORDER if counts[name])
    return Judgement(verdict, f"{words} of {len(judged)} metrics", needed or None)


def _count(verdict: Verdict, judged: Sequence[tuple[str, Judgement]]) -> str:
    """How many metrics have a verdict; worse ones are also named if there is room."""
    titles = [title for title, one in judged if one.verdict == verdict]
    # Quoted where a title has a comma of its own.
    names = ", ".join(f'"{title}"' if "," in title else title for title in titles)
    named = f" ({names})" if verdict == "worse" and len(names) <= _ROOM_FOR_TITLES else ""
    return f"{verdict} in {len(titles)}{named}"


def overall(
    verdicts: Iterable[tuple[str, Verdict]],
    *,
    unmeasured: Sequence[str] = (),
    incomplete: str | None = None,
) -> str:
    """The report in one sentence.

    It begins with why the report is incomplete, if it is. The suites follow by verdict, worse ones
    first, and those that could not be measured come last.
    """
    groups: dict[str, list[str]] = {verdict: [] for verdict in (*_ORDER, "informational")}
    for suite, verdict in verdicts:
        groups[verdict].append(suite)
    groups["not measured"] = [*unmeasured]
    parts = [f"{what}: {', '.join(suites)}" for what, suites in groups.items() if suites]
    if not any(groups[verdict] for verdict in _ORDER):
        parts.insert(0, "nothing was judged")
    return "; ".join([f"incomplete: {incomplete}"] * bool(incomplete) + parts)
