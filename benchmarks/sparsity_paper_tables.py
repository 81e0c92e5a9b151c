"""The tables of `sparsity_paper.py`: calibration languages down, evaluation languages across."""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import Any

from sparsity_paper_claims import Answer, Key, answer_claims
from sparsity_paper_page import write_report
from sparsity_paper_results import Grid, Measure, read_grids

from vllm_kprune.analyze.perplexity import signal_to_noise
from vllm_kprune.errors import KPruneError

__all__ = ["write_tables"]

_NOTE = (
    "Rows: language of the calibration text. Columns: language that is measured. Means over the "
    "seeds; **bold** is the best calibration of a column, * the row of the column's own language."
)
_CLAIMS_NOTE = (
    "Means over languages with 95 % intervals (Student). Bits are shares of what the original "
    "model has in that language. An interval around zero tells nothing."
)


def write_tables(output: Path) -> Path:
    """Write `sparsity-paper.md`, `.html` and `.json` from the cells so far; return the first."""
    grids = read_grids(output)
    if not grids:
        raise KPruneError(f"{output} has no finished cells to compare yet; run without --tables")
    answers = {(g.model, g.method): list(answer_claims(g.results())) for g in grids}
    lines = [*claims(answers), "", _NOTE]
    for grid in grids:
        lines += grid_tables(grid)
    (output / "sparsity-paper.md").write_text("\n".join([*lines, ""]), encoding="utf-8")
    write_report(output, grids, answers)
    text = json.dumps(document(grids, answers), ensure_ascii=False, indent=1)
    (output / "sparsity-paper.json").write_text(f"{text}\n", encoding="utf-8")
    return output / "sparsity-paper.md"


def claims(answers: Mapping[tuple[str, str], list[Answer]]) -> Iterator[str]:
    """One row for each claim, one column for each model and method."""
    yield from ("## Claims", "", _CLAIMS_NOTE, "")
    yield line_of("claim", "measured as", *(f"{model}, {method}" for model, method in answers))
    yield line_of(*["---"] * (2 + len(answers)))
    for row in zip(*answers.values(), strict=True):
        yield line_of(row[0].claim, row[0].measure, *map(shown, row))


def shown(answer: Answer) -> str:
    if answer.mean is None:
        return "not measured"
    if answer.low is None or answer.high is None:
        return f"{answer.verdict}: {answer.mean:.4f}, one value"
    return f"{answer.verdict}: {answer.mean:.4f} [{answer.low:.4f}, {answer.high:.4f}]"


def grid_tables(grid: Grid) -> Iterator[str]:
    """Perplexity, bits per character, tasks, signal-to-noise ratio and masks of one grid."""
    yield from ("", f"## {grid.model}, {grid.method}, {len(grid.cells)} cells", "")
    yield from measure_table(grid, "Perplexity", grid.perplexity, 1)
    yield from measure_table(grid, "Bits per character", grid.bits, 3)
    title = "Task: bits per character of the right answers (XQuAD; Korean: BoolQ)"
    yield from measure_table(grid, title, grid.task_bits, 3)
    for task in ("mgsm", "boolq"):
        yield from measure_table(
            grid, f"Task: accuracy on {task}", lambda c, t=task: grid.accuracy(c, t), 2, best=max
        )
    yield from signal_table(grid)
    yield from mask_table(grid)
    for kind in ("agnostic", "specific"):
        yield from change_table(grid, kind)


def measure_table(
    grid: Grid,
    title: str,
    measure: Callable[[Any], Measure],
    digits: int,
    best: Callable[..., float] = min,
) -> Iterator[str]:
    original = measure(grid.original)
    rows = means({key: measure(cell) for key, cell in grid.cells.items()})
    yield from table(title, rows, list(original), digits, best, original)


def means(values: Mapping[Key, Measure]) -> dict[str, dict[str, float]]:
    """Means over the seeds, by calibration and evaluation language."""
    rows: dict[str, dict[str, float]] = {}
    for language in sorted({key[0] for key in values}):
        of = [one for key, one in values.items() if key[0] == language]
        rows[language] = {name: fmean(one[name] for one in of) for name in of[0]}
    return rows


def table(
    title: str,
    rows: Mapping[str, Measure],
    columns: list[str],
    digits: int,
    best: Callable[..., float] = min,
    original: Measure | None = None,
) -> Iterator[str]:
    yield from (f"### {title}", "", line_of("calibration", *columns))
    yield line_of(*["---"] * (1 + len(columns)))
    if original:
        yield line_of("(original)", *(f"{original[name]:.{digits}f}" for name in columns))
    for language, values in rows.items():
        cells = []
        for name in columns:
            leading = values[name] == best(row[name] for row in rows.values())
            text = f"{values[name]:.{digits}f}" + ("*" if name == language else "")
            cells.append(f"**{text}**" if leading else text)
        yield line_of(language, *cells)
    yield ""


def signal_table(grid: Grid) -> Iterator[str]:
    """Signal-to-noise ratio of the perplexities over the seeds."""
    if grid.seeds < 2:
        return
    found: dict[str, dict[str, float]] = {}
    for language in grid.languages:
        cells = [grid.perplexity(cell) for key, cell in grid.cells.items() if key[0] == language]
        ratios = {name: signal_to_noise([one[name] for one in cells]) for name in cells[0]}
        if all(ratio is not None for ratio in ratios.values()):
            found[language] = {name: ratio or 0.0 for name, ratio in ratios.items()}
    if found:
        title = f"Signal-to-noise ratio of perplexity, up to {grid.seeds} seeds"
        yield from table(title, found, list(grid.evaluated), 0, best=max)


def mask_table(grid: Grid) -> Iterator[str]:
    """Mean intersection over union of zeros; on the diagonal, of two seeds of a language."""
    if grid.similarity is None:
        return
    chance = fmean(pair.chance() for pair in grid.similarity.pairs)
    title = f"Masks: mean IoU between calibration languages ({chance:.3f} by chance)"
    yield from (f"### {title}", "", line_of("calibration", *grid.languages))
    yield line_of(*["---"] * (1 + len(grid.languages)))
    for first in grid.languages:
        ious = [grid.similarity.iou(first, second) for second in grid.languages]
        yield line_of(first, *("" if iou is None else f"{iou:.3f}" for iou in ious))
    yield ""


def change_table(grid: Grid, kind: str) -> Iterator[str]:
    """Relative change of features, mean over layers."""
    changes = grid.changes(kind)
    if changes:
        averaged = {
            key: {name: fmean(layers) for name, layers in one.items()}
            for key, one in changes.items()
        }
        rows = means(averaged)
        title = f"Relative change of language-{kind} features, mean over layers"
        yield from table(title, rows, list(grid.evaluated), 3)


def document(grids: list[Grid], answers: Mapping[tuple[str, str], list[Answer]]) -> dict[str, Any]:
    """The figures of the tables, by model and method."""
    return {
        f"{grid.model} {grid.method}": {
            "cells": len(grid.cells),
            "bits_per_character": by_cell(grid, grid.bits),
            "perplexity": by_cell(grid, grid.perplexity),
            "task_bits_per_character": by_cell(grid, grid.task_bits),
            "claims": [
                asdict(one) | {"mean": one.mean} for one in answers[grid.model, grid.method]
            ],
            "masks": grid.similarity and grid.similarity.document()["languages"],
        }
        for grid in grids
    }


def by_cell(grid: Grid, measure: Callable[[Any], Measure]) -> dict[str, Measure]:
    cells = {f"{language}-{seed}": measure(c) for (language, seed), c in grid.cells.items()}
    return {"original": measure(grid.original), **cells}


def line_of(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"
