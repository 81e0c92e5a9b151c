"""The metrics of `stability`, from judged answers: a table of what each is made of.

As in Marchisio et al. 2024, pass rates are worked out for each language, and their means over the
languages are the figures of the whole. Where words cannot be judged (answers in Latin letters) the
LCPR of a language is its LPR, so that a wrong language shows in the main figure there too.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np

from vllm_kprune.compare.endpoint.messages import Answer
from vllm_kprune.compare.measurements import Measurement, Metric
from vllm_kprune.compare.suites.answer_checks import Findings, has_own_script
from vllm_kprune.compare.suites.stability_prompts import Prompt

__all__ = ["NAMES", "TEMPERATURES", "Judged", "measure", "uneven"]

TEMPERATURES = (0, 1)


class _Row(NamedTuple):
    """A metric, and the columns of `_Counts` that its aggregate works on; of each language, if it
    is a mean over languages."""

    name: str
    title: str
    better: Literal["higher", "lower", "neither"]
    margin: float
    aggregate: str
    columns: tuple[str, ...]


_LINES = ("lines_passed", "lines_judged")
_WORDS = ("words_passed", "words_judged")
_ROWS = (
    _Row(
        *("lcpr", "LCPR: lines and words pass", "higher", 0.02, "macro_harmonic"),
        (*_LINES, *_WORDS),
    ),
    _Row("lpr", "LPR: every line in its language", "neither", 0.02, "macro_ratio", _LINES),
    _Row("wpr", "WPR: of these, no English word", "neither", 0.02, "macro_ratio", _WORDS),
    _Row(
        *("foreign", "characters of another script", "lower", 0.01, "ratio"),
        ("foreign", "answers"),
    ),
    _Row("loops", "endless loops", "lower", 0.02, "ratio", ("loops", "answers")),
    _Row("broken", "invalid UTF-8", "lower", 0.01, "ratio", ("broken", "answers")),
    _Row("empty", "empty answers", "lower", 0.02, "ratio", ("empty", "answers")),
    _Row(
        *("judged", "answers with a line to judge", "neither", 0.02, "ratio"),
        ("lines_judged", "answers"),
    ),
)
_BY_LANGUAGE = ("lcpr", "lpr", "wpr", "foreign")
_IN_LATIN = ("lpr", "foreign")

NAMES = tuple(
    [f"{row.name}_t{temperature}" for temperature in TEMPERATURES for row in _ROWS]
    + [f"{name}_??_t{temperature}" for temperature in TEMPERATURES for name in _BY_LANGUAGE]
)
_UNEVEN = 0.02
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

    Some are told for each language too, without a verdict of their own.
    """
    found: list[Measurement] = []
    unavailable: dict[str, str] = {}
    for row, metric, group in _wanted(judged):
        measurement = _measurement(row, metric, group)
        if isinstance(measurement, str):
            unavailable[metric.name] = measurement
        else:
            found.append(measurement)
    return found, unavailable


def uneven(judged: Sequence[Judged]) -> list[str]:
    """Notes on temperatures where one side gave clearly more answers with a line to judge."""
    notes = []
    for temperature in TEMPERATURES:
        group = [each for each in judged if each.temperature == temperature]
        pairs = [[finding.lines is not None for finding in each.findings] for each in group]
        shares = np.mean(pairs, axis=0) if pairs else np.zeros(2)
        if abs(shares[0] - shares[1]) >= _UNEVEN:
            notes.append(
                f"At T={temperature} {shares[0]:.1%} of the original's answers and {shares[1]:.1%} "
                "of the pruned model's had a line to judge: LPR, WPR and LCPR are of these alone."
            )
    return notes


def _wanted(judged: Sequence[Judged]) -> Iterator[tuple[_Row, Metric, list[Judged]]]:
    languages = sorted({each.prompt.language for each in judged})
    for temperature in TEMPERATURES:
        group = [each for each in judged if each.temperature == temperature]
        for row in _ROWS:
            yield row, _metric(row, f"{row.name}_t{temperature}", f"T={temperature}"), group
        for language in languages if len(languages) > 1 else ():
            own = [each for each in group if each.prompt.language == language]
            names = _BY_LANGUAGE if has_own_script(language) else _IN_LATIN
            for row in (row for row in _ROWS if row.name in names):
                name = f"{row.name}_{language}_t{temperature}"
                told = row._replace(better="neither")
                metric = _metric(told, name, f"{language}, T={temperature}")
                yield told, replace(metric, detail=True), own


def _metric(row: _Row, name: str, where: str) -> Metric:
    return Metric(
        name=name,
        title=f"{row.title} ({where})",
        unit="share",
        better=row.better,
        margin=row.margin,
        aggregate=row.aggregate,
    )


def _measurement(row: _Row, metric: Metric, judged: Iterable[Judged]) -> Measurement | str:
    """Sums over a prompt's samples; the reason where a side has nothing to divide by."""
    sums: dict[str, tuple[_Counts, _Counts]] = {}
    languages: dict[str, str] = {}
    for each in judged:
        languages[each.prompt.key] = each.prompt.language
        sides = sums.setdefault(each.prompt.key, (defaultdict(float), defaultdict(float)))
        for side, answer, finding in zip(sides, each.answers, each.findings, strict=True):
            for name, value in _count(answer, finding).items():
                side[name] += value
    if not sums:
        return "no prompt was answered by both sides"
    groups = _groups(row, sorted(set(languages.values())))
    if not groups:
        return "words of languages in Latin letters are not judged"
    blocks = []
    for language, columns in groups.items():
        rows = [
            [[side[name] * (languages[key] == language or not language) for name in columns]
             for side in sums[key]]
            for key in sums
        ]  # fmt: skip
        blocks.append(np.array(rows, np.float64))
        if not blocks[-1][:, :, 1].sum(axis=0).all():
            where = f" in {language}" if language else ""
            return f"no answer{where} of a side had anything to judge"
    original, pruned = np.concatenate(blocks, axis=2).swapaxes(0, 1)
    return Measurement(metric, tuple(sums), original, pruned)


def _groups(row: _Row, languages: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """The columns of each language, or of all at once (""); none of one that has no words."""
    if not row.aggregate.startswith("macro"):
        return {"": row.columns}
    groups = {}
    for language in languages:
        if has_own_script(language):
            groups[language] = row.columns
        elif row.columns != _WORDS:
            groups[language] = _LINES * (len(row.columns) // 2)
    return groups


def _count(answer: Answer, finding: Findings) -> Mapping[str, bool]:
    return {
        "answers": True,
        "empty": not answer.text.strip(),
        "lines_judged": finding.lines is not None,
        "lines_passed": bool(finding.lines),
        "words_judged": finding.words is not None,
        "words_passed": bool(finding.words),
        "foreign": finding.foreign,
        "loops": finding.loop,
        "broken": finding.broken,
    }
