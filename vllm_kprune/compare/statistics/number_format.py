"""Numbers as a reader sees them: units, signs and intervals, with only as many digits as are
significant."""

from math import floor, isfinite, log10

from vllm_kprune.compare.measurements import Metric
from vllm_kprune.compare.statistics.comparison import Estimate

__all__ = ["show_effect", "show_margin", "show_value"]

_NOTHING = "–"
_PREFIXES = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1.0, "B"))


def show_value(value: float | None, unit: str) -> str:
    """The value of one side with its unit.

    >>> show_value(0.9731, "share"), show_value(268_100_000, "bytes")
    ('97.3 %', '268 MB')
    """
    if value is None or not isfinite(value):
        return _NOTHING
    scale, name = _unit(unit, abs(value), of_effect=False)
    places = 1 if unit in ("share", "points") else _places(value / scale, 3)
    return f"{_number(value / scale, places)} {'' if unit == 'points' else name}".rstrip()


def show_effect(effect: Estimate, metric: Metric, *, of_pair: bool = False) -> str:
    """An effect with its interval; `of_pair` marks a metric that has no sides.

    >>> accuracy = Metric("accuracy", "correct answers", "share", "higher", margin=0.01)
    >>> show_effect(Estimate(-0.0124, -0.0213, -0.0031), accuracy)
    '−1.2 pp [−2.1, −0.3]'
    """
    if effect.value is None:
        return _NOTHING
    numbers = [effect.value]
    # Values that are counted have an interval of width 0, which says nothing.
    if effect.low is not None and effect.high is not None and effect.low != effect.high:
        numbers += [effect.low, effect.high]
    if metric.effect == "ratio" and not of_pair:
        return "×" + _with_interval([f"{number:.2f}" for number in numbers], "")
    scale, name = _unit(metric.unit, max(map(abs, numbers)), of_effect=not of_pair)
    scaled = [number / scale for number in numbers]
    # The width of the interval says how many digits mean anything, not the size of the effect.
    spread = scaled[2] - scaled[1] if len(scaled) > 1 else scaled[0]
    places = {"share": 1, "points": 2}.get(metric.unit, _places(spread, 2))
    return _with_interval([_number(one, places, signed=not of_pair) for one in scaled], name)


def show_margin(metric: Metric) -> str:
    """The largest difference that still counts as equal.

    >>> accuracy = Metric("accuracy", "correct answers", "share", "higher", margin=0.01)
    >>> speed = Metric("speed", "tokens per second", "1/s", "higher", margin=0.02, effect="ratio")
    >>> show_margin(accuracy), show_margin(speed)
    ('1 pp', '2 %')
    """
    if metric.effect == "ratio":
        scale, name = 0.01, "%"
    else:
        scale, name = _unit(metric.unit, metric.margin, of_effect=True)
    # A margin is a round number that a person chose.
    return f"{metric.margin / scale:.6g} {name}".rstrip()


def _unit(unit: str, size: float, *, of_effect: bool) -> tuple[float, str]:
    """The divisor and the name of the unit after division."""
    if unit == "share":
        return 0.01, "pp" if of_effect else "%"
    if unit == "bytes":
        return next((pair for pair in _PREFIXES if size >= pair[0]), _PREFIXES[-1])
    return 1.0, unit


def _places(value: float, digits: int) -> int:
    """Decimal places that show `digits` significant ones, at most 6."""
    if value == 0 or not isfinite(value):
        return 0
    # 0.0123 with 2 digits: 2 - 1 - (-2) = 3 places, 0.012.
    return min(6, max(0, digits - 1 - floor(log10(abs(value)))))


def _number(value: float, places: int, *, signed: bool = False) -> str:
    """The rounded number with a typographic minus sign; no sign if it rounds to zero."""
    text = f"{value:,.{places}f}"
    if float(text.replace(",", "")) == 0:
        return text.removeprefix("-")
    return text.replace("-", "−") if value < 0 else f"+{text}" if signed else text


def _with_interval(numbers: list[str], unit: str) -> str:
    first = f"{numbers[0]} {unit}".rstrip()
    return f"{first} [{numbers[1]}, {numbers[2]}]" if len(numbers) > 1 else first
