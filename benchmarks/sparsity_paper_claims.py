"""What the results of `sparsity_paper.py` say about each claim of Kurz et al., with intervals.

A claim is a number that should be above zero, or for one claim is not above it, for each language
(or layer). Those numbers are taken as independent draws: the 95 % interval of their mean is
Student's. So it is about languages like these seven, not about these texts again.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Literal

from vllm_kprune.analyze.ratio import student_quantile

__all__ = ["CLAIMS", "Answer", "Results", "answer_claims", "interval", "own_advantage"]

Key = tuple[str, int]  # calibration language, seed
Verdict = Literal["holds here", "does not hold here", "cannot be told"]


@dataclass(frozen=True)
class Results:
    """The finished cells of a model and method: values by calibration and evaluation language.

    All measures are losses: lower is better. Those of text and task are multiples of what the
    original model has in the language.
    """

    perplexity: Mapping[Key, Mapping[str, float]]  # of the text
    task: Mapping[Key, Mapping[str, float]]  # of the right answer
    within: Mapping[str, float]  # by language: mean IoU of two seeds
    between: Mapping[str, float]  # by language: mean IoU with other languages
    agnostic: Mapping[Key, Mapping[str, Sequence[float]]]  # relative change of features by layer
    specific: Mapping[Key, Mapping[str, Sequence[float]]]
    # Relative change of activation probability: of language-specific neurons, and of the others.
    neurons: Mapping[Key, Mapping[str, tuple[float, float]]]


@dataclass(frozen=True)
class Answer:
    """A claim, the mean that decides it with its interval, and the verdict."""

    claim: str
    measure: str
    values: tuple[float, ...]
    low: float | None
    high: float | None
    verdict: Verdict

    @property
    def mean(self) -> float | None:
        """The mean of the values."""
        return fmean(self.values) if self.values else None


@dataclass(frozen=True)
class _Claim:
    text: str
    measure: str
    values: Callable[[Results], Sequence[float]]
    # A claim that something is not there is refuted by an interval above zero.
    denies: bool = False


def interval(values: Sequence[float]) -> tuple[float | None, float | None]:
    """Student's 95 % interval of the mean; (None, None) for fewer than two values.

    >>> interval([1.0, 2.0, 3.0])
    (-0.484..., 4.484...)
    """
    if len(values) < 2:
        return None, None
    reach = student_quantile(len(values) - 1) * stdev(values) / math.sqrt(len(values))
    return fmean(values) - reach, fmean(values) + reach


def own_advantage(measured: Mapping[Key, Mapping[str, float]]) -> dict[str, float]:
    """By evaluation language: mean loss with other calibrations, less that with its own."""
    languages = {language for language, _ in measured}
    found = {}
    for language in sorted(languages):
        own = [values[language] for key, values in measured.items() if key[0] == language]
        others = [values[language] for key, values in measured.items() if key[0] != language]
        if own and others:
            found[language] = fmean(others) - fmean(own)
    return found


def best_other_advantage(measured: Mapping[Key, Mapping[str, float]]) -> dict[str, float]:
    """By evaluation language: loss with its own calibration, less that with the best other one.

    Which other one is best is chosen on the other seeds, because the best of several noisy values
    looks better than it is. Empty with one seed.
    """
    languages, seeds = sorted({k[0] for k in measured}), sorted({k[1] for k in measured})
    found: dict[str, list[float]] = {}
    for language in languages:
        for held_out in seeds:
            means = {
                other: _mean(measured, other, language, [s for s in seeds if s != held_out])
                for other in languages
                if other != language and (other, held_out) in measured
            }
            known = {other: mean for other, mean in means.items() if mean is not None}
            if known and (language, held_out) in measured:
                best = min(known, key=lambda other: known[other])
                own, other = (measured[name, held_out][language] for name in (language, best))
                found.setdefault(language, []).append(own - other)
    return {language: fmean(values) for language, values in found.items()}


def _mean(
    measured: Mapping[Key, Mapping[str, float]], language: str, where: str, seeds: Sequence[int]
) -> float | None:
    found = [measured[language, s][where] for s in seeds if (language, s) in measured]
    return fmean(found) if found else None


def signal_advantage(measured: Mapping[Key, Mapping[str, float]]) -> dict[str, float]:
    """By evaluation language: log of its own calibrations' signal-to-noise ratio over others'."""
    found = {}
    for language in sorted({key[0] for key in measured}):
        noise: dict[str, float] = {}
        for calibration in {key[0] for key in measured}:
            seeds = [v[language] for key, v in measured.items() if key[0] == calibration]
            if len(seeds) > 1 and stdev(seeds) > 0:
                noise[calibration] = math.log(fmean(seeds) / stdev(seeds))
        others = [value for name, value in noise.items() if name != language]
        if language in noise and others:
            found[language] = noise[language] - fmean(others)
    return found


def _perplexity_over_task(results: Results) -> list[float]:
    text, task = own_advantage(results.perplexity), own_advantage(results.task)
    return [text[language] - task[language] for language in sorted(text.keys() & task.keys())]


def _agnostic_over_specific(results: Results) -> list[float]:
    """By evaluation language: how much more the agnostic features change, over all layers."""
    languages = {name for values in results.agnostic.values() for name in values}
    return [
        fmean(
            fmean(results.agnostic[key][language]) - fmean(results.specific[key][language])
            for key in results.agnostic
        )
        for language in sorted(languages)
    ]


def _late_over_early(results: Results) -> list[float]:
    """By evaluation language: change of agnostic features in the later two thirds, less earlier."""
    languages = {name for values in results.agnostic.values() for name in values}

    def rise(layers: Sequence[float]) -> float:
        third = max(1, len(layers) // 3)
        return fmean(layers[third:]) - fmean(layers[:third])

    return [
        fmean(rise(values[language]) for values in results.agnostic.values())
        for language in sorted(languages)
    ]


def _neurons_agnostic_over_specific(results: Results) -> list[float]:
    """By evaluation language: how much more the neurons of all languages change."""
    languages = {name for values in results.neurons.values() for name in values}
    return [
        fmean(v[name][1] - v[name][0] for v in results.neurons.values() if name in v)
        for name in sorted(languages)
    ]


def _by_layers(changes: Mapping[Key, Mapping[str, Sequence[float]]]) -> list[float]:
    means = {k: {n: fmean(v) for n, v in values.items()} for k, values in changes.items()}
    return list(own_advantage(means).values())


CLAIMS: tuple[_Claim, ...] = (
    _Claim(
        "Calibrating on the target language loses least perplexity",
        "bits per character saved against the mean of other calibrations",
        lambda results: list(own_advantage(results.perplexity).values()),
    ),
    _Claim(
        "It does not reliably improve the downstream task",
        "bits of the right answer saved against the mean of other calibrations",
        lambda results: list(own_advantage(results.task).values()),
        denies=True,
    ),
    _Claim(
        "It helps perplexity more than the task",
        "the first less the second",
        _perplexity_over_task,
    ),
    _Claim(
        "Another language is sometimes the better calibration for the task",
        "bits of the right answer saved by the other language that was best on other seeds",
        lambda results: list(best_other_advantage(results.task).values()),
    ),
    _Claim(
        "The target language gives perplexities with a higher signal-to-noise ratio",
        "log of the ratio, less that of other calibrations",
        lambda results: list(signal_advantage(results.perplexity).values()),
    ),
    _Claim(
        "Masks depend on the calibration language",
        "IoU of two seeds of a language, less IoU with other languages",
        lambda results: [results.within[n] - results.between[n] for n in sorted(results.within)],
    ),
    _Claim(
        "Language-specific features are preserved better than language-agnostic ones",
        "relative change of agnostic features, less that of specific ones",
        _agnostic_over_specific,
    ),
    _Claim(
        "Language-agnostic features are lost in middle and late layers above all",
        "relative change of agnostic features in the later two thirds of layers, less the first",
        _late_over_early,
    ),
    _Claim(
        "The target language preserves language-specific features best",
        "relative change saved against the mean of other calibrations",
        lambda results: _by_layers(results.specific),
    ),
    _Claim(
        "It does not preserve language-agnostic features better",
        "relative change saved against the mean of other calibrations",
        lambda results: _by_layers(results.agnostic),
        denies=True,
    ),
    _Claim(
        "Neurons of one language keep their activity better than neurons of all",
        "relative change of activation probability, upper half of LAPE less the lower half",
        _neurons_agnostic_over_specific,
    ),
)


def answer_claims(results: Results) -> Iterator[Answer]:
    """An answer to each claim."""
    for claim in CLAIMS:
        values = tuple(claim.values(results))
        low, high = interval(values)
        verdict = _verdict(low, high, claim.denies)
        yield Answer(claim.text, claim.measure, values, low, high, verdict)


def _verdict(low: float | None, high: float | None, denies: bool) -> Verdict:
    """A claim that denies holds if the interval is below zero; one around zero tells nothing.

    >>> _verdict(0.1, 0.2, False), _verdict(0.1, 0.2, True), _verdict(-1.0, 1.0, True)
    ('holds here', 'does not hold here', 'cannot be told')
    """
    if low is None or high is None or low <= 0 <= high:
        return "cannot be told"
    return "holds here" if (low > 0) != denies else "does not hold here"
