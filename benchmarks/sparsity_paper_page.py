"""The page of `sparsity_paper.py`: what Kurz et al. show in figures 1 to 5, from our cells.

| section | figure of the paper |
|---|---|
| features by layer | 1, with its appendix |
| masks | 2 |
| neurons | 3, for one SparseGPT model calibrated in German |
| agnostic features, specific features | 4 and 5 |
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

from sparsity_paper_claims import Answer, interval
from sparsity_paper_results import Grid, Measure

from vllm_kprune.analyze.charts import Series, heatmap, interval_chart, line_chart
from vllm_kprune.analyze.page import Section, write_page
from vllm_kprune.analyze.run import NeuronResults
from vllm_kprune.analyze.sections import neuron_sections

__all__ = ["write_report"]

Kind = Literal["agnostic", "specific"]

_LEAD = (
    "After Kurz, Chen, Flek and Zhao, On the Limitations of Language Targeted Pruning, on small "
    "models: each is pruned to 50 % with a calibration text in one language and measured in all."
)
_GERMAN = "sparsegpt", ("de", 0)


def write_report(
    output: Path, grids: Sequence[Grid], answers: Mapping[tuple[str, str], list[Answer]]
) -> Path:
    """Write `sparsity-paper.html` and return its path."""
    sections = [_claims(answers)]
    for grid in grids:
        sections += _sections(grid)
    path = output / "sparsity-paper.html"
    write_page(path, "Which language to calibrate sparsity with", _LEAD, sections)
    return path


def _claims(answers: Mapping[tuple[str, str], list[Answer]]) -> Section:
    """A chart for each claim that was measured, with the verdicts."""
    # The first part of a model's name tells the three apart, and leaves room for the chart.
    names = [f"{model.split('-')[0]}, {method}" for model, method in answers]
    charts = []
    for row in zip(*answers.values(), strict=True):
        known = [
            (f"{name}: {answer.verdict}", answer.mean, answer.high - answer.mean)
            for name, answer in zip(names, row, strict=True)
            if answer.mean is not None and answer.high is not None
        ]
        if known:
            points = [(mean, float(place)) for place, (_, mean, _) in enumerate(known)]
            one = Series("mean over languages", points, [margin for *_, margin in known])
            rows = [name for name, *_ in known]
            charts.append(interval_chart(row[0].claim, rows, [one], row[0].measure))
    note = (
        "Means over languages with 95 % intervals. A claim holds if the whole interval is above "
        "zero, and one that says what does not happen if it is below."
    )
    return Section("Claims", note, charts)


def _sections(grid: Grid) -> Iterator[Section]:
    name = f"{grid.model}, {grid.method}"
    yield Section(
        f"{name}: what pruning costs",
        "Bits per character, as a multiple of the original model's: less is better. Calibration "
        "language down, language of the text across, mean over seeds.",
        [
            _heatmap(grid, "Text", grid.bits),
            _heatmap(grid, "Right answer of the task", grid.task_bits),
        ],
    )
    if grid.similarity is not None:
        languages, found = grid.languages, grid.similarity
        values = [[found.iou(a, b) for b in languages] for a in languages]
        yield Section(
            f"{name}: masks (figure 2)",
            "Mean intersection over union of the zeros. On the diagonal: of two seeds.",
            [heatmap("Calibration languages", languages, languages, values)],
        )
    if grid.features:
        yield Section(
            f"{name}: features (figures 4 and 5)",
            "Change as a share of the original's size, mean over layers. Marks are means over the "
            "seeds with 95 % intervals. Smaller is better.",
            [_feature_chart(grid, "agnostic"), _feature_chart(grid, "specific")],
        )
        yield Section(
            f"{name}: features by layer (figure 1)",
            "Mean over evaluation languages: calibrated in the same language, and in others.",
            [_layer_chart(grid, "agnostic"), _layer_chart(grid, "specific")],
        )
    method, german = _GERMAN
    if grid.method == method and german in grid.neurons:
        results = NeuronResults(grid.model, {f"{name}-de-0 (figure 3)": grid.neurons[german]})
        yield from neuron_sections(results)


def _heatmap(grid: Grid, caption: str, measure: Callable[[Any], Measure]) -> str:
    columns, original, rows = list(grid.evaluated), measure(grid.original), []
    for language in grid.languages:
        cells = [measure(cell) for key, cell in grid.cells.items() if key[0] == language]
        rows.append([fmean(one[name] / original[name] for one in cells) for name in columns])
    return heatmap(caption, grid.languages, columns, rows, 2)


def _feature_chart(grid: Grid, kind: Kind) -> str:
    changes, series = grid.changes(kind), []
    for number, calibration in enumerate(grid.languages):
        points, margins = [], []
        for row, language in enumerate(grid.evaluated):
            values = [fmean(one[language]) for key, one in changes.items() if key[0] == calibration]
            if values:
                points.append((fmean(values), float(row)))
                high = interval(values)[1]
                margins.append(0.0 if high is None else high - fmean(values))
        series.append(Series(f"calibrated: {calibration}", points, margins, number))
    return interval_chart(
        f"Language-{kind} features", list(grid.evaluated), series, "relative change"
    )


def _layer_chart(grid: Grid, kind: Kind) -> str:
    changes = grid.changes(kind)
    pairs = [(key[0], language, layers) for key, one in changes.items()
             for language, layers in one.items()]  # fmt: skip
    series = []
    for number, (title, same) in enumerate(
        {"same language": True, "other language": False}.items()
    ):
        chosen = [layers for mine, other, layers in pairs if (mine == other) == same]
        if chosen:
            means = [fmean(values) for values in zip(*chosen, strict=True)]
            points = [(float(layer), value) for layer, value in enumerate(means)]
            title = "same language" if same else "other language"
            series.append(Series(title, points, colour=number))
    return line_chart(
        f"Language-{kind} features", series, x_title="layer", y_title="relative change", share=True
    )
