"""The metrics of `stability`, from judged answers: a table of what each one counts.

The main metric is the share of answers without any flaw, at both temperatures together. Every flaw
moves it, whichever of the other metrics it belongs to, so a gate on the suite cannot miss one.

As in the code of Marchisio et al. 2024, pass rates are computed for each language of each source
(kprune's own prompts, its own across languages, each data set of the benchmark), and then averaged
over these. Where words cannot be judged (answers in Latin letters), the LCPR of a language is its
LPR, so that a wrong language still shows in the main metric.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np

from vllm_kprune.compare.endpoint.messages import Answer
from vllm_kprune.compare.measurements import Measurement, Metric
from vllm_kprune.compare.suites.answer_checks import Findings, has_own_script
from vllm_kprune.compare.suites.stability_prompts import Prompt

__all__ = ["NAMES", "TEMPERATURES", "JudgedSample", "measure", "uneven"]

TEMPERATURES = (0, 1)


class _StabilityMetric(NamedTuple):
    """A metric, and the columns of `_Counts` that its aggregate uses.

    If it is a mean over sources and languages, it has these columns for each of them.
    """

    name: str
    title: str
    better: Literal["higher", "lower", "neither"]
    margin: float
    aggregate: str
    columns: tuple[str, ...]
    unit: str = "share"


_LINES = ("lines_passed", "lines_judged")
_WORDS = ("words_passed", "words_judged")
_SOUND = _StabilityMetric(
    *("sound", "answers without any flaw", "higher", 0.02, "ratio"), ("sound", "answers")
)
# About what a model thinks before it answers; only if any does.
_THINKING = (
    _StabilityMetric(
        *("reasoned", "answers that begin with reasoning", "neither", 0.02, "ratio"),
        ("reasoned", "answers"),
    ),
    _StabilityMetric(
        *("reasoning_own", "reasoning in the answer's language", "neither", 0.02, "ratio"),
        ("reasoning_own", "reasoned"),
    ),
    _StabilityMetric(
        *("reasoning_tokens", "tokens of reasoning", "neither", 1.0, "ratio"),
        ("reasoning_tokens", "reasoning_counted"),
        "tokens",
    ),
)
_METRICS = (
    _StabilityMetric(
        *("lcpr", "LCPR: lines and words pass", "higher", 0.02, "macro_harmonic"),
        (*_LINES, *_WORDS),
    ),
    _StabilityMetric(
        "lpr", "LPR: every line in its language", "neither", 0.02, "macro_ratio", _LINES
    ),
    _StabilityMetric(
        "wpr", "WPR: of these, no English word", "neither", 0.02, "macro_ratio", _WORDS
    ),
    _StabilityMetric(
        *("foreign", "characters of another script", "lower", 0.02, "ratio"),
        ("foreign", "answers"),
    ),
    _StabilityMetric("loops", "endless loops", "lower", 0.02, "ratio", ("loops", "answers")),
    _StabilityMetric("broken", "invalid UTF-8", "lower", 0.01, "ratio", ("broken", "answers")),
    _StabilityMetric("empty", "empty answers", "lower", 0.02, "ratio", ("empty", "answers")),
    _StabilityMetric(
        *("judged", "answers with a line to judge", "neither", 0.02, "ratio"),
        ("lines_judged", "answers"),
    ),
)
_BY_LANGUAGE = ("lcpr", "lpr", "wpr", "foreign")
_IN_LATIN = ("lpr", "foreign")
_ALL = "all"  # both temperatures

NAMES = tuple(
    [f"sound_{_ALL}", f"sound_??_{_ALL}"]
    + [f"{row.name}_{_ALL}" for row in _THINKING]
    + [f"{row.name}_t{temperature}" for temperature in TEMPERATURES for row in _METRICS]
    # `??` stands for a language code.
    + [f"{name}_??_t{temperature}" for temperature in TEMPERATURES for name in _BY_LANGUAGE]
)
_UNEVEN = 0.02
_Counts = defaultdict[str, float]
_Cell = tuple[str, str]  # a source and a language


@dataclass(frozen=True)
class JudgedSample:
    """One sample of a prompt with the answers of both sides, judged.

    `thought_in` are the languages of what came before the answers, None where nothing did.
    """

    prompt: Prompt
    temperature: int
    sample: int
    answers: tuple[Answer, Answer]
    findings: tuple[Findings, Findings]
    thought_in: tuple[str | None, str | None] = (None, None)


def measure(judged: Sequence[JudgedSample]) -> tuple[list[Measurement], dict[str, str]]:
    """The main metric, those at T=0, then at T=1, and why any of them could not be measured.

    Some are also reported for each language, as informational metrics.
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


def uneven(judged: Sequence[JudgedSample]) -> list[str]:
    """Notes on temperatures at which one side has clearly more answers with a line to judge."""
    notes = []
    for temperature in TEMPERATURES:
        group = [each for each in judged if each.temperature == temperature]
        pairs = [[finding.lines is not None for finding in each.findings] for each in group]
        shares = np.mean(pairs, axis=0) if pairs else np.zeros(2)
        if abs(shares[0] - shares[1]) >= _UNEVEN:
            notes.append(
                f"At T={temperature} {shares[0]:.1%} of the original's answers and {shares[1]:.1%} "
                "of the pruned model's had a line to judge; LPR, WPR and LCPR cover only these."
            )
    return notes


def _wanted(
    judged: Sequence[JudgedSample],
) -> Iterator[tuple[_StabilityMetric, Metric, list[JudgedSample]]]:
    yield _SOUND, _metric(_SOUND, f"sound_{_ALL}", "T=0 and 1"), list(judged)
    yield from _of_languages([_SOUND], judged, _ALL, "T=0 and 1")
    if any(language for each in judged for language in each.thought_in):
        for row in _THINKING:
            yield row, _metric(row, f"{row.name}_{_ALL}", "T=0 and 1"), list(judged)
    for temperature in TEMPERATURES:
        group = [each for each in judged if each.temperature == temperature]
        suffix, where = f"t{temperature}", f"T={temperature}"
        for row in _METRICS:
            yield row, _metric(row, f"{row.name}_{suffix}", where), group
        yield from _of_languages(_METRICS, group, suffix, where)


def _of_languages(
    rows: Sequence[_StabilityMetric], judged: Sequence[JudgedSample], suffix: str, where: str
) -> Iterator[tuple[_StabilityMetric, Metric, list[JudgedSample]]]:
    """Details for each language, if there are several."""
    languages = sorted({each.prompt.language for each in judged})
    for language in languages if len(languages) > 1 else ():
        own = [each for each in judged if each.prompt.language == language]
        names = ("sound", *(_BY_LANGUAGE if has_own_script(language) else _IN_LATIN))
        for row in (row for row in rows if row.name in names):
            informational = row._replace(better="neither")
            metric = _metric(
                informational, f"{row.name}_{language}_{suffix}", f"{language}, {where}"
            )
            yield informational, replace(metric, detail=True), own


def _metric(row: _StabilityMetric, name: str, where: str) -> Metric:
    return Metric(
        name=name,
        title=f"{row.title} ({where})",
        unit=row.unit,
        better=row.better,
        margin=row.margin,
        aggregate=row.aggregate,
    )


def _measurement(
    row: _StabilityMetric, metric: Metric, judged: Iterable[JudgedSample]
) -> Measurement | str:
    """Sums over the samples of each prompt, or the reason why a side has nothing to divide by."""
    sums: dict[str, tuple[_Counts, _Counts]] = {}
    cells: dict[str, _Cell] = {}
    for each in judged:
        # The item is the prompt: its samples depend on each other, so they are summed up.
        cells[each.prompt.key] = each.prompt.source, each.prompt.language
        sides = sums.setdefault(each.prompt.key, (defaultdict(float), defaultdict(float)))
        of_sides = zip(sides, each.answers, each.findings, each.thought_in, strict=True)
        for side, answer, finding, thought_in in of_sides:
            counts = _count(answer, finding) | _thoughts(answer, thought_in, each.prompt.language)
            for name, value in counts.items():
                side[name] += value
    if not sums:
        return "no prompt was answered by both sides"
    groups = _groups(row, sorted(set(cells.values())))
    if not groups:
        return "words are not judged in languages with Latin letters"
    blocks = []
    for cell, columns in groups.items():
        rows = [
            # A prompt has zeros in the columns of other cells, and adds nothing to their sums.
            [[side[name] * (cell in (cells[key], None)) for name in columns]
             for side in sums[key]]
            for key in sums
        ]  # fmt: skip
        blocks.append(np.array(rows, np.float64))
        # [prompts, sides, columns]; column 1 is what the score is divided by.
        if not blocks[-1][:, :, 1].sum(axis=0).all():
            where = f" in {cell[1]}" if cell else ""
            return f"one side has no answer{where} with anything to judge"
    # Blocks side by side: [prompts, 2, columns of all cells]; then one array for each side.
    original, pruned = np.concatenate(blocks, axis=2).swapaxes(0, 1)
    return Measurement(metric, tuple(sums), original, pruned)


def _groups(row: _StabilityMetric, cells: Sequence[_Cell]) -> dict[_Cell | None, tuple[str, ...]]:
    """The columns of each source and language, or of all together (None).

    A language whose words are not judged has no columns for words.
    """
    if not row.aggregate.startswith("macro"):
        return {None: row.columns}
    groups: dict[_Cell | None, tuple[str, ...]] = {}
    for cell in cells:
        if has_own_script(cell[1]):
            groups[cell] = row.columns
        elif row.columns != _WORDS:
            # LCPR gets its lines twice: the harmonic mean of a number and itself is that number.
            groups[cell] = _LINES * (len(row.columns) // 2)
    return groups


def _count(answer: Answer, finding: Findings) -> dict[str, float]:
    empty = not answer.text.strip()
    wrong = finding.lines is False or finding.words is False
    return {
        "answers": True,
        "sound": not (empty or wrong or finding.foreign or finding.loop or finding.broken),
        "empty": empty,
        "lines_judged": finding.lines is not None,
        "lines_passed": bool(finding.lines),
        "words_judged": finding.words is not None,
        "words_passed": bool(finding.words),
        "foreign": finding.foreign,
        "loops": finding.loop,
        "broken": finding.broken,
    }


def _thoughts(answer: Answer, language: str | None, wanted: str) -> dict[str, float]:
    tokens = _reasoning_tokens(answer) if language else None
    return {
        "reasoned": language is not None,
        "reasoning_own": language == wanted,
        "reasoning_tokens": tokens or 0,
        "reasoning_counted": tokens is not None,
    }


def _reasoning_tokens(answer: Answer) -> float | None:
    """As the server counted them, else its share of the answer's tokens, by characters."""
    if answer.reasoning_tokens is not None or answer.completion_tokens is None:
        return answer.reasoning_tokens
    thought = len(answer.reasoning)
    return answer.completion_tokens * thought / (thought + len(answer.text))
