"""The metrics of `translation`: scores of each direction, and their means over all directions."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from vllm_kprune.compare.asking import Task
from vllm_kprune.compare.endpoint.messages import Answer
from vllm_kprune.compare.measurements import Floats, Measurement, Metric
from vllm_kprune.compare.suites.translation_prompts import Direction, translation_of
from vllm_kprune.compare.suites.translation_scores import (
    bleu_features,
    chrf_features,
    comet_features,
)
from vllm_kprune.errors import KPruneError

__all__ = ["DirectionScores", "Rows", "of_one", "over_all", "score"]

# Readers do not notice smaller differences (Kocmi et al. 2024, "Navigating the Metrics Maze", on
# how well differences of BLEU, chrF and COMET agree with human judgement, by their size).
# COMET's scale ends at 1, the others' at 100.
_MARGINS = {"chrf": 1.0, "bleu": 1.0, "comet": 0.01}
_TITLES = {"chrf": "chrF++", "bleu": "BLEU", "comet": "COMET"}
_MACRO = {"chrf": "macro_chrf", "bleu": "macro_bleu", "comet": "macro_ratio"}

Rows = Sequence[tuple[Task, tuple[Answer, Answer]]]


@dataclass(frozen=True)
class _Features:
    """The features of one score in one direction, of both sides."""

    items: tuple[str, ...]
    sides: tuple[Floats, Floats]


DirectionScores = dict[str, _Features]


def score(
    direction: Direction, rows: Rows, comet_model: str | None
) -> tuple[DirectionScores, Mapping[str, str]]:
    """The scores of one direction, and why any is missing."""
    items = tuple(task.key for task, _ in rows)
    sources = [task.labels["source"] for task, _ in rows]
    references = [task.reference or "" for task, _ in rows]
    texts = [[translation_of(pair[side]) for _, pair in rows] for side in (0, 1)]

    def of_both(features: Callable[[list[str]], Floats]) -> _Features:
        return _Features(items, (features(texts[0]), features(texts[1])))

    found = {
        "chrf": of_both(lambda own: chrf_features(own, references)),
        "bleu": of_both(lambda own: bleu_features(own, references, direction.target)),
    }
    try:
        found["comet"] = of_both(lambda own: comet_features(sources, own, references, comet_model))
    except KPruneError as error:
        return found, {f"comet_{direction.key}": str(error)}
    return found, {}


def over_all(scores: Mapping[str, DirectionScores]) -> list[Measurement]:
    """The mean of each score over the directions, if every direction has it."""
    return [
        _measurement(score, "all", ", all directions", _side_by_side(score, list(scores.values())))
        for score in _TITLES
        if scores and all(score in own for own in scores.values())
    ]


def _side_by_side(score: str, directions: Sequence[DirectionScores]) -> _Features:
    """The items of all directions, with columns for each.

    An item has zeros in the columns of other directions, and adds nothing to their sums.
    """
    items = tuple(item for own in directions for item in own[score].items)
    first, second = (
        [_countable(score, own[score].sides[side]) for own in directions] for side in (0, 1)
    )
    return _Features(items, (_block_diagonal(first), _block_diagonal(second)))


def _countable(score: str, features: Floats) -> Floats:
    """Columns that can be summed up: a mean becomes a sum and a number of items."""
    return np.hstack([features, np.ones_like(features)]) if score == "comet" else features


def _block_diagonal(blocks: Sequence[Floats]) -> Floats:
    whole = np.zeros((sum(map(len, blocks)), sum(block.shape[1] for block in blocks)))
    row = column = 0
    for block in blocks:
        whole[row : row + len(block), column : column + block.shape[1]] = block
        row, column = row + len(block), column + block.shape[1]
    return whole


def of_one(score: str, direction: Direction, found: _Features) -> Measurement:
    where = f" {direction.source}→{direction.target}"
    of_all = _measurement(score, direction.key, where, found)
    kind = "mean" if score == "comet" else score
    return replace(of_all, metric=replace(of_all.metric, better="neither", aggregate=kind))


def _measurement(score: str, suffix: str, where: str, found: _Features) -> Measurement:
    metric = Metric(
        name=f"{score}_{suffix}",
        title=_TITLES[score] + where,
        unit="points",
        better="higher",
        margin=_MARGINS[score],
        aggregate=_MACRO[score],
    )
    return Measurement(metric, found.items, *found.sides)
