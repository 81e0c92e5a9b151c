"""The web page of `kprune inspect --plot FILE.html`: the panels, and their figures in a table.

It has no script. The panels are SVG inside the page, so that its style sheet gives them the colours
of light and dark mode, and they become as narrow as a telephone.
"""

from collections.abc import Iterable, Iterator, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template

from vllm_kprune.checkpoint.curve import Curve

__all__ = ["page"]


def page(curve: Curve, panels: Sequence[str]) -> str:
    """The page as HTML; `panels` are drawn as SVG."""
    template = files("vllm_kprune.cli").joinpath("curve_page.html").read_text(encoding="utf-8")
    return Template(template).substitute(
        title=escape(f"{Path(curve.model).name}, profile {curve.profile}"),
        measured_on="your texts" if curve.measured_on == "text" else "the profile's own evidence",
        panels="".join(f"<div>{panel}</div>" for panel in panels),
        rows="".join(_rows(curve)),
    )


def _rows(curve: Curve) -> Iterator[str]:
    original = curve.points[-1]
    weighed = original.vocabulary_bytes is not None
    names = [
        Path(name).name if curve.measured_on == "text" else name for name in original.extra_tokens
    ]
    yield _row("th", ["tokens", "of all", *(["weights, MB"] if weighed else []), *names])
    for point in curve.points:
        cells = [f"{point.tokens:,}", f"{point.tokens / original.tokens:.0%}"]
        if point.vocabulary_bytes is not None:
            cells.append(f"{point.vocabulary_bytes / 1e6:,.1f}")
        cells += [f"{extra:+.2%}" for extra in point.extra_tokens.values()]
        yield _row("td", cells, own=point.tokens == curve.chosen)


def _row(tag: str, cells: Iterable[str], *, own: bool = False) -> str:
    inside = "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells)
    return f"<tr{' class=own' * own}>{inside}</tr>\n"
