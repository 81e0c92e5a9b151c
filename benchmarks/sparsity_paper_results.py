"""The finished cells of `sparsity_paper.py`, read and put in order for tables and claims."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

import numpy as np
from sparsity_paper_cell import Cell
from sparsity_paper_claims import Key, Results

from vllm_kprune.analyze.features import Embeddings, FeatureChange, compare_features
from vllm_kprune.analyze.lape import NeuronChange, NeuronGroup, compare_neurons
from vllm_kprune.analyze.mask_similarity import MaskSimilarity, compare_masks
from vllm_kprune.analyze.masks import PackedMasks
from vllm_kprune.analyze.neurons import NeuronActivity, NeuronSite

__all__ = ["Grid", "Measure", "read_grids"]

_NATS_PER_BIT = math.log(2)
# By evaluation language.
Measure = Mapping[str, float]


@dataclass(frozen=True)
class Grid:
    """All finished cells of a model and a method, and the original."""

    model: str
    method: str
    folder: Path
    original: Mapping[str, Any]
    cells: Mapping[Key, Mapping[str, Any]]
    masks: Mapping[Key, Path]

    @property
    def languages(self) -> tuple[str, ...]:
        """The calibration languages."""
        return tuple(sorted({language for language, _ in self.cells}))

    @property
    def evaluated(self) -> tuple[str, ...]:
        """The evaluation languages."""
        return tuple(sorted(next(iter(self.cells.values()))["parts"]["perplexity"]["values"]))

    @property
    def seeds(self) -> int:
        """The number of seeds."""
        return len({seed for _, seed in self.cells})

    def perplexity(self, cell: Mapping[str, Any]) -> Measure:
        """Perplexity per token."""
        found = _values(cell, "perplexity")
        return {name: one["perplexity"]["value"] for name, one in found.items()}

    def nats(self, cell: Mapping[str, Any]) -> Measure:
        """Negative log-likelihood of the text, in nats per character."""
        return {
            name: one["nats"] / one["characters"]
            for name, one in _values(cell, "perplexity").items()
        }

    def task(self, cell: Mapping[str, Any]) -> Measure:
        """Negative log-likelihood of the right answers, in nats per character.

        XQuAD's answers; for Korean, which XQuAD lacks, those of BoolQ.
        """
        return {name: _task_loss(rows) for name, rows in _values(cell, "tasks").items()}

    def bits(self, cell: Mapping[str, Any]) -> Measure:
        """`nats` in bits."""
        return {name: value / _NATS_PER_BIT for name, value in self.nats(cell).items()}

    def task_bits(self, cell: Mapping[str, Any]) -> Measure:
        """`task` in bits."""
        return {name: value / _NATS_PER_BIT for name, value in self.task(cell).items()}

    def accuracy(self, cell: Mapping[str, Any], task: str) -> Measure:
        """The share of questions whose right choice is the likeliest; without other languages."""
        found = {}
        for name, rows in _values(cell, "tasks").items():
            right = [_best(row) == row["right"] for row in rows if row["task"] == task]
            if right:
                found[name] = fmean(right)
        return found

    @cached_property
    def similarity(self) -> MaskSimilarity | None:
        """The overlap of all pairs of masks; None with fewer than two."""
        masks = [PackedMasks.load(path) for _, path in sorted(self.masks.items())]
        return compare_masks(masks) if len(masks) > 1 else None

    def results(self) -> Results:
        """What the claims are answered from."""
        within, between = self._overlaps()
        return Results(
            perplexity=self._relative(self.nats),
            task=self._relative(self.task),
            within=within,
            between=between,
            agnostic=self.changes("agnostic"),
            specific=self.changes("specific"),
            neurons=self._neuron_changes(),
        )

    @cached_property
    def features(self) -> dict[Key, FeatureChange]:
        """How the features of each cell differ from the original's."""
        original = _embeddings(self.original, self.folder)
        found = {key: _embeddings(cell, self.folder) for key, cell in self.cells.items()}
        return {
            key: compare_features(original, one)
            for key, one in found.items()
            if original is not None and one is not None
        }

    @cached_property
    def neurons(self) -> dict[Key, NeuronChange]:
        """How often the neurons of each cell are active, against the original."""
        original = _activity(self.original, self.folder)
        found = {key: _activity(cell, self.folder) for key, cell in self.cells.items()}
        return {
            key: compare_neurons(original, one)
            for key, one in found.items()
            if original is not None and one is not None
        }

    def changes(
        self, kind: Literal["agnostic", "specific"]
    ) -> dict[Key, Mapping[str, Sequence[float]]]:
        """Relative change of the features of a kind: by cell, evaluation language and layer."""
        found = {}
        for key, change in self.features.items():
            layers = [part.relative for part in getattr(change, kind)]
            found[key] = dict(zip(change.languages, zip(*layers, strict=True), strict=True))
        return found

    def _relative(self, measure: Callable[[Mapping[str, Any]], Measure]) -> dict[Key, Measure]:
        """A loss of each cell as a multiple of the original's, so that languages count alike: a
        character of Chinese says as much as three of English."""
        original = measure(self.original)
        return {
            key: {name: value / original[name] for name, value in measure(cell).items()}
            for key, cell in self.cells.items()
        }

    def _neuron_changes(self) -> dict[Key, Mapping[str, tuple[float, float]]]:
        """By cell and language: mean change of probability of the neurons in the lower and the
        upper half of entropies (language-specific first), as a share of what it was."""
        return {
            key: {
                language: (_relative_change(one.groups[:half]), _relative_change(one.groups[half:]))
                for language, one in change.languages.items()
                if (half := len(one.groups) // 2)
            }
            for key, change in self.neurons.items()
        }

    def _overlaps(self) -> tuple[dict[str, float], dict[str, float]]:
        within, between = {}, {}
        if self.similarity is not None:
            for language in self.languages:
                others = [
                    iou
                    for other in self.languages
                    if other != language
                    and (iou := self.similarity.iou(language, other)) is not None
                ]
                same = self.similarity.iou(language, language)
                if same is not None and others:
                    within[language], between[language] = same, fmean(others)
        return within, between


def read_grids(folder: Path) -> list[Grid]:
    """The grids of all models that have an original and two cells of a method."""
    grids = []
    for path in sorted(folder.glob("*/original.json")):
        original = json.loads(path.read_text("utf-8"))
        for method in ("wanda", "sparsegpt"):
            files = sorted(path.parent.glob(f"{method}-*.json"))
            read = [json.loads(file.read_text("utf-8")) for file in files]
            cells = {(one["language"], one["seed"]): one for one in read if _whole(one)}
            masks = {
                key: path.parent / f"{method}-{key[0]}-{key[1]}.masks.npz"
                for key, one in cells.items()
                if "masks" in one["parts"]
            }
            if len({language for language, _ in cells}) > 1:
                grids.append(Grid(original["model"], method, path.parent, original, cells, masks))
    return grids


def _embeddings(cell: Mapping[str, Any], folder: Path) -> Embeddings | None:
    """What the part "features" stored; None if it was not measured."""
    if "features" not in cell["parts"]:
        return None
    path = folder / f"{_name(cell)}.embeddings.npz"
    with np.load(path, allow_pickle=False) as stored:
        return Embeddings(tuple(_values(cell, "features")["languages"]), stored["values"])


def _activity(cell: Mapping[str, Any], folder: Path) -> NeuronActivity | None:
    """What the part "neurons" stored."""
    if "neurons" not in cell["parts"]:
        return None
    values = _values(cell, "neurons")
    sites = tuple(NeuronSite(*one) for one in values["sites"])
    with np.load(folder / f"{_name(cell)}.neurons.npz", allow_pickle=False) as stored:
        return NeuronActivity(
            tuple(values["languages"]), tuple(values["tokens"]), sites, stored["active"]
        )


def _name(cell: Mapping[str, Any]) -> str:
    return Cell(cell["model"], cell["method"], cell["language"], cell["seed"]).name


def _whole(cell: Mapping[str, Any]) -> bool:
    return {"perplexity", "tasks"} <= cell["parts"].keys()


def _values(cell: Mapping[str, Any], part: str) -> Mapping[str, Any]:
    found: Mapping[str, Any] = cell["parts"][part]["values"]
    return found


def _relative_change(groups: Sequence[NeuronGroup]) -> float:
    before = sum(group.neurons * group.before for group in groups)
    change = sum(group.neurons * abs(group.after - group.before) for group in groups)
    return change / before if before else 0.0


def _best(row: Mapping[str, Any]) -> int:
    """The answer that is likeliest per character: a longer one has more to be unlikely with."""
    scores = [n / c for n, c in zip(row["nats"], row["characters"], strict=True)]
    return scores.index(min(scores))


def _task_loss(rows: Sequence[Mapping[str, Any]]) -> float:
    """Nats of the right answers over their characters."""
    chosen = [row for row in rows if row["task"] == "xquad"] or rows
    right = [(row["nats"][row["right"]], row["characters"][row["right"]]) for row in chosen]
    return float(sum(nats for nats, _ in right) / sum(characters for _, characters in right))
