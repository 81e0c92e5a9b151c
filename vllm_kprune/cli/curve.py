"""The curve of `kprune inspect --curve`: as a table, and drawn by Altair from the extra `plot`."""

import importlib.util
from io import StringIO
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from vllm_kprune.checkpoint.curve import Curve, CurvePoint
from vllm_kprune.cli.curve_page import page, shown_texts
from vllm_kprune.errors import KPruneError

__all__ = ["check_plot", "curve_table", "plot_curve"]

_FORMATS = (".html", ".png", ".svg")
_LIBRARIES = ("altair", "vl_convert")
_ON_EVIDENCE = (
    "Measured on the profile's own evidence, which also chose the tokens; "
    "--text FILE measures your own text."
)
_LEFT_OUT = " The sources that cost most; --json has all {}."
_MOST_COLUMNS = 3  # of 80 characters


def curve_table(curve: Curve) -> Table:
    """A row for each size; the profile's own size is marked."""
    original = curve.points[-1]
    names = shown_texts(curve, _MOST_COLUMNS)
    caption = _ON_EVIDENCE if curve.measured_on == "evidence" else ""
    if len(names) < len(original.extra_tokens):
        caption += _LEFT_OUT.format(len(original.extra_tokens))
    table = Table(
        title=escape(f"{curve.model}, profile {curve.profile}: size against extra tokens"),
        caption=caption or None,
        title_justify="left",
        caption_justify="left",
    )
    weighed = original.vocabulary_bytes is not None
    for heading in ("tokens", "of all", *(["weights, MB"] if weighed else []), *names, ""):
        table.add_column(escape(heading), justify="right", overflow="fold")
    for point in curve.points:
        cells = [f"{point.tokens:,}", f"{point.tokens / original.tokens:.0%}"]
        if point.vocabulary_bytes is not None:
            cells.append(f"{point.vocabulary_bytes / 1e6:,.1f}")
        cells += [f"{point.extra_tokens[name]:+.2%}" for name in names]
        chosen = point.tokens == curve.chosen
        table.add_row(*cells, _mark(curve, point), style="bold" if chosen else None)
    return table


def _mark(curve: Curve, point: CurvePoint) -> str:
    if point.tokens == curve.chosen:
        return f"← {escape(curve.profile)}"
    return "original" if point is curve.points[-1] else ""


def check_plot(path: Path) -> None:
    """Raise `KPruneError`, before anything is measured, if a plot cannot be written to `path`."""
    if path.suffix.lower() not in _FORMATS:
        raise KPruneError(f"--plot {path}: the name must end in {', '.join(_FORMATS)}")
    if not path.absolute().parent.is_dir():
        raise KPruneError(f"--plot {path}: the folder {path.parent} does not exist")
    for library in _LIBRARIES:
        if importlib.util.find_spec(library) is None:
            raise KPruneError(
                f"--plot needs {library}, which is not installed: pip install 'vllm-kprune[plot]'"
            )


def plot_curve(curve: Curve, path: Path) -> None:
    """Draw extra tokens against size, and against memory where there are weights.

    The web page is self-contained: it loads nothing from elsewhere, and runs nothing.
    """
    import altair

    panels = [_panel(curve, "tokens", "tokens kept")]
    if curve.points[-1].vocabulary_bytes is not None:
        panels.append(_panel(curve, "megabytes", "vocabulary weights, MB"))
    chart = altair.hconcat(*panels, title=_title(curve))
    try:
        if path.suffix.lower() == ".html":
            path.write_text(page(curve, [_as_svg(panel) for panel in panels]), encoding="utf-8")
        else:
            chart.save(str(path), format=path.suffix.lower()[1:], ppi=144)
    except OSError as error:
        raise KPruneError(f"--plot {path} cannot be written: {error.strerror}") from None


def _title(curve: Curve) -> str:
    return f"{Path(curve.model).name}, profile {curve.profile} (dashed: its own size)"


def _as_svg(panel: Any) -> str:
    """A panel as narrow as a telephone, in which the page's style sheet chooses the colours."""
    text = StringIO()
    narrow = panel.properties(width=330, height=280).configure(background="transparent")
    sized = narrow.configure_axis(labelFontSize=13, titleFontSize=13)
    sized.configure_legend(labelFontSize=13, titleFontSize=13, orient="bottom").save(
        text, format="svg"
    )
    return text.getvalue()


def _panel(curve: Curve, field: str, title: str) -> Any:
    import altair

    names = shown_texts(curve)
    rows = [_values(curve, point, name) for point in curve.points for name in names]
    # Linear near zero, logarithmic above a tenth of a percent, so that both ends can be read.
    scale = altair.Scale(type="symlog", constant=0.001)
    axis = altair.Axis(format=".2~%", values=[0, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3])
    lines = (
        altair.Chart(altair.Data(values=rows))
        .mark_line(point=True)
        .encode(
            x=altair.X(f"{field}:Q", title=title, scale=altair.Scale(zero=False)),
            y=altair.Y("extra:Q", title="extra tokens", scale=scale, axis=axis),
            color=altair.Color("text:N", title=f"on {curve.measured_on}"),
            tooltip=["text:N", "tokens:Q", altair.Tooltip("extra:Q", format=".2%")],
        )
    )
    # There is a row for each text; one line is enough.
    chosen = [row for row in rows if row["tokens"] == curve.chosen][:1]
    mark = altair.Chart(altair.Data(values=chosen)).mark_rule(strokeDash=[4, 4])
    return (lines + mark.encode(x=f"{field}:Q")).properties(width=420, height=320)


def _values(curve: Curve, point: CurvePoint, name: str) -> dict[str, Any]:
    size = point.vocabulary_bytes
    return {
        "text": Path(name).name if curve.measured_on == "text" else name,
        "tokens": point.tokens,
        "megabytes": None if size is None else size / 1e6,
        "extra": point.extra_tokens[name],
    }
