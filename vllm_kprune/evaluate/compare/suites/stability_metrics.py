"""The metrics of `stability`, from judged answers: a table of what each is made of."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np

from vllm_kprune.evaluate.compare.answer_checks import Findings, has_own_script
from vllm_kprune.evaluate.compare.endpoint import Answer
from vllm_kprune.evaluate.compare.suites.stability_prompts import Prompt
from vllm_kprune.evaluate.compare.values import Measurement, Metric

__all__ = ["NAMES", "TEMPERATURES", "Judged", "measure"]

TEMPERATURES = (0, 1)


class _Row(NamedTuple):
    """A metric, and the columns of `_Counts` that its aggregate works on."""

    name: str
    title: str
    better: Literal["higher", "lower", "neither"]
    margin: float
    aggregate: str
    columns: tuple[str, ...]


_ROWS = (
    _Row(
        *("lcpr", "LCPR: harmonic mean of line and word pass rate", "higher", 0.02, "harmonic"),
        ("lines_passed", "lines_judged", "words_passed", "words_judged"),
    ),
    _Row(
        *("lpr", "LPR: answers with every line in the wanted language", "neither", 0.02, "ratio"),
        ("lines_passed", "lines_judged"),
    ),
    _Row(
        *("wpr", "WPR: of these, answers without an English word", "neither", 0.02, "ratio"),
        ("words_passed", "words_judged"),
    ),
    _Row(
        *("foreign", "answers with a character of another script", "lower", 0.01, "ratio"),
        ("foreign", "answers"),
    ),
    _Row("loops", "answers that end in a loop", "lower", 0.02, "ratio", ("loops", "answers")),
    _Row("broken", "answers with invalid UTF-8", "lower", 0.01, "ratio", ("broken", "answers")),
)
_BY_LANGUAGE = ("lpr", "wpr", "foreign")

NAMES = tuple(
    [f"{row.name}_t{temperature}" for temperature in TEMPERATURES for row in _ROWS]
    + [f"{name}_??_t{temperature}" for temperature in TEMPERATURES for name in _BY_LANGUAGE]
)
_Counts = defaultdict[str, float]


@dataclass(frozen=True)
class Judged:
    """One sample of a prompt, answered by both sides."""

    prompt: Prompt
    temperature: int
    sample: int
    answers: tuple[Answer, Answer]
    findings: tuple[Findings, Findings]


def measure(judged: Sequence[Judged]) -> tuple[list[Measurement], dict[str, str]]:
    """The metrics at T=0, then at T=1, and why one could not be measured.

    Some are told for each language too, without a verdict of their own. Where words cannot be
    judged (answers in Latin letters alone), the verdict is on the lines.
    """
    found: list[Measurement] = []
    unavailable: dict[str, str] = {}
    for row, metric, group in _wanted(judged):
        if metric.name.replace("lpr", "lcpr") in unavailable:
            metric = replace(metric, better="higher")
        measurement = _measurement(metric, row.columns, group)
        if measurement is None:
            unavailable[metric.name] = "no answer of a side had anything to judge"
        else:
            found.append(measurement)
    return found, unavailable


def _wanted(judged: Sequence[Judged]) -> Iterator[tuple[_Row, Metric, list[Judged]]]:
    languages = sorted({each.prompt.language for each in judged})
    for temperature in TEMPERATURES:
        group = [each for each in judged if each.temperature == temperature]
        for row in _ROWS:
            yield row, _metric(row, f"{row.name}_t{temperature}", f"T={temperature}"), group
        for language in languages if len(languages) > 1 else ():
            own = [each for each in group if each.prompt.language == language]
            names = _BY_LANGUAGE if has_own_script(language) else ("lpr", "foreign")
            for row in (row for row in _ROWS if row.name in names):
                name = f"{row.name}_{language}_t{temperature}"
                told = row._replace(better="neither")
                yield told, _metric(told, name, f"{language}, T={temperature}"), own


def _metric(row: _Row, name: str, where: str) -> Metric:
    return Metric(
        name=name,
        title=f"{row.title} ({where})",
        unit="share",
        better=row.better,
        margin=row.margin,
        aggregate=row.aggregate,
    )


def _measurement(
    metric: Metric, columns: Sequence[str], judged: Iterable[Judged]
) -> Measurement | None:
    """Sums over a prompt's samples; None where a side has nothing to divide by."""
    sums: dict[str, tuple[_Counts, _Counts]] = {}
    for each in judged:
        sides = sums.setdefault(each.prompt.key, (defaultdict(float), defaultdict(float)))
        for side, finding in zip(sides, each.findings, strict=True):
            for name, value in _count(finding).items():
                side[name] += value
    original, pruned = (
        np.array([[sides[side][name] for name in columns] for sides in sums.values()])
        for side in (0, 1)
    )
    if not sums or not all(np.all(side[:, 1::2].sum(axis=0)) for side in (original, pruned)):
        return None
    return Measurement(metric, tuple(sums), original, pruned)


def _count(finding: Findings) -> Mapping[str, bool]:
    return {
        "answers": True,
        "lines_judged": finding.lines is not None,
        "lines_passed": bool(finding.lines),
        "words_judged": finding.words is not None,
        "words_passed": bool(finding.words),
        "foreign": finding.foreign,
        "loops": finding.loop,
        "broken": finding.broken,
    }
