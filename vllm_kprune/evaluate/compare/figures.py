"""Figures as a reader sees them: units, signs, intervals, and p-values in words."""

from math import isfinite

from vllm_kprune.evaluate.compare.statistics import Estimate
from vllm_kprune.evaluate.compare.values import Metric

__all__ = ["show_effect", "show_figure", "show_margin", "show_p", "significant"]

_SCALES = ((1e9, "G"), (1e6, "M"), (1e3, "k"))
_NOTHING = "–"


def show_figure(value: float | None, unit: str) -> str:
    """A figure of one side with its unit.

    >>> show_figure(0.9731, "share"), show_figure(268_100_000, "bytes")
    ('97.3 %', '268 MB')
    """
    if value is None:
        return _NOTHING
    if unit == "share":
        return f"{_rounded(100 * value, 1)} %"
    if unit == "bytes":
        return _bytes(value)
    return f"{significant(value)} {unit}".rstrip()


def show_effect(effect: Estimate, metric: Metric, *, of_pair: bool = False) -> str:
    """An effect with its interval; `of_pair` for a metric that has no sides.

    >>> show_effect(Estimate(-0.012, -0.021, -0.003), share_metric)
    '−1.2 pp [−2.1, −0.3]'
    """
    if effect.value is None:
        return _NOTHING
    ends = (effect.low, effect.high)
    if of_pair:
        shown = [show_figure(number, metric.unit) for number in (effect.value, *ends)]
        return shown[0] + _interval(ends, shown[1:])
    numbers = [_one_effect(number, metric) for number in (effect.value, *ends)]
    unit = {"share": "pp", "bytes": ""}.get(metric.unit, metric.unit)
    if metric.effect == "ratio":
        return f"×{numbers[0]}" + _interval(ends, numbers[1:])
    return f"{numbers[0]} {unit}".rstrip() + _interval(ends, numbers[1:])


def show_margin(metric: Metric) -> str:
    """The difference that still counts as equal.

    >>> show_margin(share_metric), show_margin(ratio_metric)
    ('1 pp', '2 %')
    """
    if metric.effect == "ratio":
        return f"{significant(100 * metric.margin)} %"
    if metric.unit == "share":
        return f"{significant(100 * metric.margin)} pp"
    return show_figure(metric.margin, metric.unit)


def show_p(p: float | None) -> str:
    """A p-value; smaller than a thousandth is not told apart."""
    if p is None:
        return ""
    return "p < 0.001" if p < 0.001 else f"p = {p:.2g}"


def significant(value: float, digits: int = 3) -> str:
    """A number to three significant digits, without an exponent, with the minus sign of text."""
    if not isfinite(value):
        return _NOTHING
    places = 0
    while places < 6 and 0 < abs(value) < 10 ** (digits - 1 - places):
        places += 1
    text = f"{value:,.{places}f}"
    return (text.rstrip("0").rstrip(".") if "." in text else text).replace("-", "−")


def _one_effect(value: float | None, metric: Metric) -> str:
    if value is None:
        return _NOTHING
    if metric.effect == "ratio":
        return f"{value:.2f}" if value < 100 else significant(value)
    if metric.unit == "share":
        return _signed(_rounded(100 * value, 1), value)
    if metric.unit == "bytes":
        return _signed(_bytes(value), value)
    return _signed(significant(value), value)


def _signed(text: str, value: float) -> str:
    return f"+{text}" if value > 0 else text


def _rounded(value: float, places: int) -> str:
    """Rounded; a value that rounds to nothing gets one more digit, and never a sign of zero."""
    text = f"{value:.{places}f}"
    if float(text) == 0 and value:
        text = f"{value:.{places + 1}f}"
    return f"{0:.{places}f}" if float(text) == 0 else text.replace("-", "−")


def _bytes(value: float) -> str:
    for scale, prefix in _SCALES:
        if abs(value) >= scale:
            return f"{significant(value / scale)} {prefix}B"
    return f"{significant(value)} B"


def _interval(ends: tuple[float | None, ...], shown: list[str]) -> str:
    if None in ends or ends[0] == ends[1]:
        return ""
    return f" [{shown[0]}, {shown[1]}]"
