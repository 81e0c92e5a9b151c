"""How alike pruning masks are: intersection over union of the zeros of each pair of models.

    similarity = compare_masks([FolderMasks(folder) for folder in folders])
    similarity.iou("ko", "de")            # mean over the pairs of a ko and a de model
    similarity.pairs[0].iou(layer=3)      # one pair, one layer
    similarity.pairs[0].iou(kind="mlp.up_proj")

For sets of zeros A and B of the same matrices, IoU = |A and B| / |A or B|; 1 if neither has zeros.
Over several matrices, both counts are added up first, so that every weight counts the same. Two
independent masks with shares a and b of zeros are expected to have the IoU ab / (a + b - ab), a
third at 50 %: `chance`. Kurz et al. (figure 2) compare masks of one calibration language (within)
and of two (between).
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import prod
from statistics import fmean
from typing import Any

import numpy as np

from vllm_kprune.analyze.masks import Masks, MatrixName
from vllm_kprune.arrays import Bytes
from vllm_kprune.errors import KPruneError
from vllm_kprune.progress import Progress, silent

__all__ = ["MaskPair", "MaskSimilarity", "MaskedModel", "Overlap", "compare_masks"]


@dataclass(frozen=True)
class Overlap:
    """Counts of one layer's matrices of one kind: weights, zeros of each, of both, of either."""

    layer: int
    kind: str
    weights: int
    first: int
    second: int
    both: int
    either: int


@dataclass(frozen=True)
class MaskedModel:
    """A compared model: its name, its calibration languages (`ko`, `en+ko` or empty), its share of
    zeros."""

    name: str
    languages: str
    sparsity: float


@dataclass(frozen=True)
class MaskPair:
    """Two models, by their numbers, and how their zeros overlap."""

    first: int
    second: int
    overlaps: tuple[Overlap, ...]

    def iou(self, *, layer: int | None = None, kind: str | None = None) -> float:
        """Intersection over union, of all matrices or of one layer or kind."""
        chosen = list(self._chosen(layer, kind))
        either = sum(one.either for one in chosen)
        return sum(one.both for one in chosen) / either if either else 1.0

    def chance(self) -> float:
        """The IoU that independent masks with as many zeros are expected to have."""
        both = sum(one.first * one.second / one.weights for one in self.overlaps)
        either = sum(one.first + one.second for one in self.overlaps) - both
        return both / either if either else 1.0

    def _chosen(self, layer: int | None, kind: str | None) -> Iterator[Overlap]:
        for one in self.overlaps:
            if layer in (None, one.layer) and kind in (None, one.kind):
                yield one


@dataclass(frozen=True)
class MaskSimilarity:
    """All pairs of the compared models."""

    models: tuple[MaskedModel, ...]
    pairs: tuple[MaskPair, ...]

    @property
    def languages(self) -> tuple[str, ...]:
        """The calibration languages of the models, sorted; those that are not known are left out"""
        return tuple(sorted({model.languages for model in self.models} - {""}))

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of matrices, sorted."""
        return tuple(dict.fromkeys(one.kind for one in self.pairs[0].overlaps))

    @property
    def layers(self) -> tuple[int, ...]:
        """The numbers of the layers."""
        return tuple(dict.fromkeys(one.layer for one in self.pairs[0].overlaps))

    def iou(
        self, first: str, second: str, *, layer: int | None = None, kind: str | None = None
    ) -> float | None:
        """Mean IoU over the pairs of two calibration languages; None if there are none.

        With twice the same language, over the pairs of different models of it.
        """
        wanted = {first, second}
        found = [
            pair.iou(layer=layer, kind=kind)
            for pair in self.pairs
            if {self.models[pair.first].languages, self.models[pair.second].languages} == wanted
        ]
        return fmean(found) if found else None

    def mean_iou(
        self, *, same: bool | None = None, layer: int | None = None, kind: str | None = None
    ) -> float | None:
        """Mean IoU over all pairs, or over those of the same (or of other) calibration languages.

        None if there are none.
        """
        found = [
            pair.iou(layer=layer, kind=kind)
            for pair in self.pairs
            if same is None or self._same(pair) is same
        ]
        return fmean(found) if found else None

    def _same(self, pair: MaskPair) -> bool | None:
        first, second = (self.models[n].languages for n in (pair.first, pair.second))
        return first == second if first and second else None

    def document(self) -> dict[str, Any]:
        """For JSON: models, pairs, and means by language, layer and kind."""
        names = [model.name for model in self.models]
        languages = self.languages
        matrix = [[self.iou(a, b) for b in languages] for a in languages]
        return {
            "models": [vars(model) for model in self.models],
            "languages": {"names": languages, "iou": matrix},
            "pairs": [
                {
                    "models": [names[pair.first], names[pair.second]],
                    "iou": pair.iou(),
                    "chance": pair.chance(),
                    "by_layer": {str(one): pair.iou(layer=one) for one in self.layers},
                    "by_kind": {one: pair.iou(kind=one) for one in self.kinds},
                    "overlaps": [vars(one) for one in pair.overlaps],
                }
                for pair in self.pairs
            ],
        }


def compare_masks(masks: Sequence[Masks], *, progress: Progress = silent) -> MaskSimilarity:
    """Compare the masks of two or more models, one matrix of all of them at a time.

    Raises `KPruneError` for fewer than two models, for models of other matrices, and if one of them
    has no zeros.
    """
    matrices = _common_matrices(masks)
    pairs = list(combinations(range(len(masks)), 2))
    # (pair, layer, kind) -> weights, first, second, both, either
    counts: dict[tuple[int, int, str], Any] = defaultdict(lambda: np.zeros(5, np.int64))
    zeros = [0] * len(masks)
    for done, (matrix, shape) in enumerate(matrices.items(), start=1):
        packed = [one.zeros(matrix) for one in masks]
        ones = [_count(bits) for bits in packed]
        zeros = [total + count for total, count in zip(zeros, ones, strict=True)]
        for number, (first, second) in enumerate(pairs):
            both = _count(packed[first] & packed[second])
            either = ones[first] + ones[second] - both
            key = number, matrix.layer, matrix.kind
            counts[key] += (prod(shape), ones[first], ones[second], both, either)
        progress("compare masks", done / len(matrices))
    weights = sum(map(prod, matrices.values()))
    for one, count in zip(masks, zeros, strict=True):
        if not count:
            raise KPruneError(f"{one.name} has no zeros in its matrices; give sparsified models")
    overlaps: dict[int, list[Overlap]] = defaultdict(list)
    for (number, layer, kind), values in counts.items():
        overlaps[number].append(Overlap(layer, kind, *map(int, values)))
    return MaskSimilarity(
        tuple(
            MaskedModel(one.name, "+".join(one.languages), count / weights)
            for one, count in zip(masks, zeros, strict=True)
        ),
        tuple(MaskPair(*pair, tuple(overlaps[number])) for number, pair in enumerate(pairs)),
    )


def _common_matrices(masks: Sequence[Masks]) -> dict[MatrixName, tuple[int, ...]]:
    """Name -> shape, the same for all models."""
    if len(masks) < 2:
        raise KPruneError(f"got {len(masks)} model to compare masks of, expected two or more")
    first, shapes = masks[0], dict(masks[0].shapes)
    for other in masks[1:]:
        if dict(other.shapes) != shapes:
            raise KPruneError(
                f"{other.name} has other matrices than {first.name}; masks can only be compared "
                "between prunings of one model"
            )
    return shapes


def _count(bits: Bytes) -> int:
    return int(np.bitwise_count(bits).sum())
