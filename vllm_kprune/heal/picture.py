"""The curve of a training, drawn by Altair: both losses, and held-out bits per character."""

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vllm_kprune.errors import KPruneError
from vllm_kprune.heal.notes import HealNotes

__all__ = ["check_drawing", "draw_curve"]

_LIBRARIES = ("altair", "vl_convert")
_LOSSES = {"language_modelling": "language modelling", "distillation": "distillation"}
# Points of a line: a picture of more is large and shows no more.
_MOST_POINTS = 400


def check_drawing() -> None:
    """Raise `KPruneError`, before anything is trained, if no picture can be drawn."""
    for library in _LIBRARIES:
        if importlib.util.find_spec(library) is None:
            raise KPruneError(
                f"kprune heal needs {library}, which is not installed: pip install "
                "'vllm-kprune[heal]'"
            )


def draw_curve(notes: HealNotes, path: Path) -> None:
    """Draw both losses by step, and bits per character of each language, into an SVG file."""
    import altair

    panels = [
        _lines(altair, _losses(notes.curve), "nats per token", "loss", points=False),
        _lines(altair, _bits(notes), "bits per character, held out", "text", points=True),
    ]
    title = f"{notes.settings['what']}, {notes.step} steps; best at step {_best(notes)}"
    altair.hconcat(*panels, title=title).resolve_scale(color="independent").save(
        str(path), format="svg"
    )


def _best(notes: HealNotes) -> int:
    return int(notes.best["step"]) if notes.best else 0


def _losses(curve: Sequence[Mapping[str, float]]) -> list[dict[str, Any]]:
    """A row for each loss and stretch of steps: its mean over the stretch."""
    width = -(-len(curve) // _MOST_POINTS) or 1
    rows = []
    for first in range(0, len(curve), width):
        part = curve[first : first + width]
        for key, name in _LOSSES.items():
            mean = sum(one[key] for one in part) / len(part)
            rows.append({"step": first + len(part), "value": mean, "line": name})
    return rows


def _bits(notes: HealNotes) -> list[dict[str, Any]]:
    states = [(0, notes.start), *((one["step"], one["bits"]) for one in notes.judged)]
    return [
        {"step": step, "value": value, "line": name}
        for step, bits in states
        for name, value in bits.items()
    ]


def _lines(altair: Any, rows: list[dict[str, Any]], title: str, of: str, *, points: bool) -> Any:
    return (
        altair.Chart(altair.Data(values=rows))
        .mark_line(point=points)
        .encode(
            x=altair.X("step:Q", title="step"),
            y=altair.Y("value:Q", title=title, scale=altair.Scale(zero=False)),
            color=altair.Color("line:N", title=of),
        )
        .properties(width=380, height=280)
    )
