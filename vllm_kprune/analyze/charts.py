"""Charts and tables as HTML: SVG in percentages and in classes of `page.css`, without a script.

So they follow the width of a phone and the dark mode, print, and need no library. All texts are
escaped here.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

__all__ = ["Series", "heatmap", "interval_chart", "line_chart", "table"]

# Colours of `page.css`; more series repeat them.
_COLOURS = 8
_SHADES = 10
_TICKS = 5


@dataclass(frozen=True)
class Series:
    """A named line, or marks in rows: (x, y) or (value, row), and half-widths of intervals.

    `dashed` lines are what others are compared with; `colour` may be shared by two lines.
    """

    name: str
    points: Sequence[tuple[float, float]]
    margins: Sequence[float] = ()
    colour: int = 0
    dashed: bool = False


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose first column is text and whose other ones are figures."""
    top = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    body = "".join(
        f"<tr><th>{escape(row[0])}</th>"
        + "".join(f"<td>{escape(c)}</td>" for c in row[1:])
        + "</tr>"
        for row in rows
    )
    return f'<div class="wide"><table><tr>{top}</tr>{body}</table></div>'


def heatmap(
    caption: str,
    rows: Sequence[str],
    columns: Sequence[str],
    values: Sequence[Sequence[float | None]],
    digits: int = 3,
    corner: str = "",
) -> str:
    """A table whose cells are the darker the larger their value is."""
    known = [value for row in values for value in row if value is not None]
    low, high = (min(known), max(known)) if known else (0.0, 0.0)

    def cell(value: float | None) -> str:
        if value is None:
            return "<td></td>"
        share = (value - low) / (high - low) if high > low else 0.0
        return f'<td class="s{round(_SHADES * share)}">{value:.{digits}f}</td>'

    top = "".join(f"<th>{escape(name)}</th>" for name in columns)
    body = "".join(
        f"<tr><th>{escape(name)}</th>{''.join(map(cell, row))}</tr>"
        for name, row in zip(rows, values, strict=True)
    )
    head = f"<tr><th>{escape(corner)}</th>{top}</tr>"
    return _figure(caption, f'<div class="wide"><table class="heat">{head}{body}</table></div>')


def line_chart(
    caption: str, series: Sequence[Series], *, x_title: str, y_title: str, share: bool = False
) -> str:
    """Lines over numbers. With `share`, the vertical axis begins at 0 and is in percent."""
    low, high = _range(_with_margins(series) + [0.0] * share)
    first, last = _range([x for one in series for x, _ in one.points])
    x, y = _Scale(first, last), _Scale(low, high, flip=True)
    parts = [
        *(_horizontal(y.at(tick), _number(tick, share)) for tick in _ticks(low, high)),
        *(_below(x.at(tick), _number(tick, False)) for tick in _ticks(first, last)),
        *(_band(one, x, y) for one in series if one.margins),
        *(_line(one, x, y) for one in series),
    ]
    titles = f"{y_title} over {x_title}"
    plot = f'<div class="plot">{_svg(titles, parts)}</div>'
    below = f'<p class="axis">{escape(x_title)}</p>'
    return _figure(caption, f'<p class="axis">{escape(y_title)}</p>{plot}{below}{_legend(series)}')


def interval_chart(
    caption: str, rows: Sequence[str], series: Sequence[Series], x_title: str
) -> str:
    """A row for each name with a mark for each series: points are (value, number of the row)."""
    low, high = _range([*_with_margins(series, axis=0), 0.0])
    x = _Scale(low, high)
    parts = [_vertical(x.at(tick), _number(tick, False)) for tick in _ticks(low, high)]
    for number, one in enumerate(series):
        margins = one.margins or [0.0] * len(one.points)
        for (value, row), margin in zip(one.points, margins, strict=True):
            y = 100 * (row + (number + 1) / (len(series) + 1)) / len(rows)
            ends = [x.at(value - margin), x.at(value + margin)]
            title = f"{rows[int(row)]}, {one.name}: {_number(value, False)}"
            parts.append(
                f'<g class="c{one.colour % _COLOURS}"><title>{escape(title)}</title>'
                f'<line x1="{ends[0]:.2f}%" x2="{ends[1]:.2f}%" y1="{y:.2f}%" y2="{y:.2f}%"/>'
                f'<circle cx="{x.at(value):.2f}%" cy="{y:.2f}%" r="4"/></g>'
            )
    height = f"h{min(9, math.ceil(len(rows) * (len(series) + 1) / 4))}"
    labels = "".join(f"<span>{escape(name)}</span>" for name in rows)
    plot = (
        f'<div class="rows {height}"><div class="labels">{labels}</div>'
        f'<div class="plot">{_svg(x_title, parts)}</div></div>'
    )
    return _figure(caption, f'{plot}<p class="axis">{escape(x_title)}</p>{_legend(series)}')


@dataclass(frozen=True)
class _Scale:
    """From values to percent of the width, or of the height from above (`flip`)."""

    low: float
    high: float
    flip: bool = False

    def at(self, value: float) -> float:
        place = 100 * (value - self.low) / (self.high - self.low)
        return 100 - place if self.flip else place


def _with_margins(series: Sequence[Series], axis: int = 1) -> list[float]:
    ends = []
    for one in series:
        margins = one.margins or [0.0] * len(one.points)
        for point, margin in zip(one.points, margins, strict=True):
            ends += [point[axis] - margin, point[axis] + margin]
    return ends


def _range(values: Sequence[float]) -> tuple[float, float]:
    """The ends of an axis; never the same, so that scales can divide."""
    low, high = min(values), max(values)
    room = abs(low) / 10 or 1.0
    return (low, high) if high > low else (low - room, high + room)


def _ticks(low: float, high: float) -> Iterator[float]:
    """About five round numbers between the ends.

    >>> list(_ticks(0.0, 1.0))
    [0.0, 0.2, 0.4, 0.6000000000000001, 0.8, 1.0]
    """
    raw = (high - low) / _TICKS
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw * 0.999)
    for number in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1):
        yield number * step


def _number(value: float, share: bool) -> str:
    """A short figure.

    >>> _number(0.25, True), _number(0.30000000000000004, False), _number(-2, False)
    ('25 %', '0.3', '−2')
    """
    text = f"{100 * value:.4g} %" if share else f"{value:.4g}"
    return text.replace("-", "−")


def _horizontal(y: float, text: str) -> str:
    return (
        f'<line class="grid" x1="0" x2="100%" y1="{y:.2f}%" y2="{y:.2f}%"/>'
        f'<text x="-8" y="{y:.2f}%" dy="4" text-anchor="end">{escape(text)}</text>'
    )


def _vertical(x: float, text: str) -> str:
    return f'<line class="grid" x1="{x:.2f}%" x2="{x:.2f}%" y1="0" y2="100%"/>{_below(x, text)}'


def _below(x: float, text: str) -> str:
    return f'<text x="{x:.2f}%" y="100%" dy="17" text-anchor="middle">{escape(text)}</text>'


def _line(one: Series, x: _Scale, y: _Scale) -> str:
    places = " ".join(f"{x.at(a):.2f},{y.at(b):.2f}" for a, b in one.points)
    classes = f"line c{one.colour % _COLOURS}" + (" dashed" if one.dashed else "")
    dots = "".join(
        f'<circle class="hover" cx="{x.at(a):.2f}%" cy="{y.at(b):.2f}%" r="7"><title>'
        f"{escape(one.name)}: {_number(a, False)}, {_number(b, False)}</title></circle>"
        for a, b in one.points
    )
    return f'{_stretched(f"""<polyline class="{classes}" points="{places}"/>""")}{dots}'


def _band(one: Series, x: _Scale, y: _Scale) -> str:
    pairs = list(zip(one.points, one.margins, strict=True))
    upper = [f"{x.at(a):.2f},{y.at(b + margin):.2f}" for (a, b), margin in pairs]
    lower = [f"{x.at(a):.2f},{y.at(b - margin):.2f}" for (a, b), margin in reversed(pairs)]
    places = " ".join(upper + lower)
    return _stretched(f'<polygon class="band c{one.colour % _COLOURS}" points="{places}"/>')


def _stretched(shape: str) -> str:
    """A shape in percent of both axes; its stroke is not stretched (`page.css`)."""
    return f'<svg viewBox="0 0 100 100" preserveAspectRatio="none">{shape}</svg>'


def _svg(label: str, parts: Sequence[str]) -> str:
    return f'<svg role="img" aria-label="{escape(label)}">{"".join(parts)}</svg>'


def _legend(series: Sequence[Series]) -> str:
    names = "".join(
        f'<span><i class="c{one.colour % _COLOURS}{" dashed" if one.dashed else ""}"></i>'
        f"{escape(one.name)}</span>"
        for one in series
    )
    return f'<div class="legend">{names}</div>' if len(series) > 1 else ""


def _figure(caption: str, content: str) -> str:
    return f"<figure><figcaption>{escape(caption)}</figcaption>{content}</figure>"
