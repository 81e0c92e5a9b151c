"""A suite's result in one plain sentence, for the first screen of a page and of a terminal."""

from vllm_kprune.compare.measurements import SuiteResult
from vllm_kprune.compare.report.document import MetricReport
from vllm_kprune.compare.statistics.number_format import show_value

__all__ = ["sentence"]


def sentence(result: SuiteResult, main: MetricReport | None) -> str:
    """What the main metric says, or why there is none.

    - no flaw on either side in 304 items; at most 1.0 pp apart
    - chrF++, all directions: 41.2 and 41.3; at most 0.8 points apart
    - answers without any flaw: 98.4 % → 91.1 %; the difference is between −10.1 and −4.4 pp
    - decode speed: 21.0 1/s → 25.4 1/s; 21 % more (between 19 % and 23 %)
    """
    if main is None:
        reason = next(iter(result.unavailable.values()), "it returned no results")
        return f"not measured: {reason.removeprefix('not measured: ')}"
    if main.pruned is None:
        return f"{main.title}: {main.shown.original}"
    doubt = ", but not after correction" if "not after correction" in main.words else ""
    if main.effect_kind == "ratio":
        return f"{_values(main)}; {_change(main)}{doubt}"
    low, high = main.effect.low, main.effect.high
    if low is None or high is None:
        return _values(main)
    if main.verdict == "equal":
        apart = f"at most {_size(max(abs(low), abs(high)), main.unit)} apart"
        return f"{_alike(main)}; {apart}"
    bounds = f"{_signed(low, main.unit)} and {_signed(high, main.unit)}"
    return f"{_values(main)}; the difference is between {bounds}{doubt}"


def _alike(main: MetricReport) -> str:
    """Two equal sides, with "no flaw" where there was none at all."""
    perfect = 1.0 if main.better == "higher" else 0.0
    if main.unit == "share" and main.differing == 0 and main.original.value == perfect:
        return f"no flaw on either side in {main.items:,} items"
    return f"{main.title}: {main.shown.original} and {main.shown.pruned}"


def _values(main: MetricReport) -> str:
    return f"{main.title}: {main.shown.original} → {main.shown.pruned}"


def _change(main: MetricReport) -> str:
    """A ratio in words: x 0.92 [0.85, 0.99] is 8 % less (between 15 % and 1 % less)."""
    value, low, high = main.effect.value, main.effect.low, main.effect.high
    if value is None:
        return "no ratio"
    if low is None or high is None or low == high:
        return _more_or_less(value)
    return f"{_more_or_less(value)} (between {_more_or_less(low)} and {_more_or_less(high)})"


def _more_or_less(ratio: float) -> str:
    change = abs(ratio - 1)
    text = f"{100 * change:.0f} %" if change >= 0.01 else f"{100 * change:.1f} %"
    return f"{text} {'more' if ratio >= 1 else 'less'}"


def _size(value: float, unit: str) -> str:
    if unit == "share":
        return f"{100 * value:.1f} pp"
    return f"{value:.2f} points" if unit == "points" else show_value(value, unit)


def _signed(value: float, unit: str) -> str:
    sign = "−" if value < 0 else "+"
    return f"{sign}{_size(abs(value), unit)}"
