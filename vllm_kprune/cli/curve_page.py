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

__all__ = ["page", "shown_texts"]


def page(curve: Curve, panels: Sequence[str]) -> str:
    """The page as HTML; `panels` are drawn as SVG."""
    template = files("vllm_kprune.cli").joinpath("curve_page.html").read_text(encoding="utf-8")
    return Template(template).substitute(
        title=escape(f"{Path(curve.model).name}, profile {curve.profile}"),
        measured_on="your texts" if curve.measured_on == "text" else "the profile's own evidence",
        panels="".join(f"<div>{panel}</div>" for panel in panels),
        rows="".join(_rows(curve)),
    )


def shown_texts(curve: Curve, most: int = 10) -> list[str]:
    """The user's texts; of a profile's own sources only those that cost most at its size."""
    names = list(curve.points[-1].extra_tokens)
    if curve.measured_on == "text":
        return names
    (own,) = [point for point in curve.points if point.tokens == curve.chosen] or curve.points[:1]
    dearest = sorted(names, key=lambda name: -own.extra_tokens[name])[:most]
    return [name for name in names if name in dearest]


def _rows(curve: Curve) -> Iterator[str]:
    original = curve.points[-1]
    weighed = original.vocabulary_bytes is not None
    texts = shown_texts(curve)
    names = [Path(name).name if curve.measured_on == "text" else name for name in texts]
    yield _row("th", ["tokens", "of all", *(["weights, MB"] if weighed else []), *names])
    for point in curve.points:
        cells = [f"{point.tokens:,}", f"{point.tokens / original.tokens:.0%}"]
        if point.vocabulary_bytes is not None:
            cells.append(f"{point.vocabulary_bytes / 1e6:,.1f}")
        cells += [f"{point.extra_tokens[name]:+.2%}" for name in texts]
        yield _row("td", cells, own=point.tokens == curve.chosen)


def _row(tag: str, cells: Iterable[str], *, own: bool = False) -> str:
    inside = "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells)
    return f"<tr{' class=own' * own}>{inside}</tr>\n"
