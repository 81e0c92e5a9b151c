"""Translation between the languages of the comparison: chrF++, BLEU and, where installed, COMET.

The first language is the pivot: with `ko,en,zh` the directions are en-ko, ko-en, zh-ko and ko-zh.
A model with a chat template is asked to translate; one without continues three examples. Decoding
is greedy, and both sides get the same prompts. Scores with different tokenizers or prompts are not
comparable, so the notes give sacrebleu's signatures. Sentences come from the user's files or from
`parallel_text.py`.

The means over all directions are judged, and a loss in any direction moves them. The scores of
single directions are informational: twice as many verdicts would each need more data.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from vllm_kprune.compare.asking import Task, answered, ask_both
from vllm_kprune.compare.measurements import Example, SuiteResult
from vllm_kprune.compare.options import DATA, MEASURED, CommonOptions
from vllm_kprune.compare.run import Amount, Context, Suite
from vllm_kprune.compare.suites.parallel_text import Sentence, sentences_of, why_none
from vllm_kprune.compare.suites.spoken import spoken
from vllm_kprune.compare.suites.translation_metrics import (
    DirectionScores,
    Rows,
    of_one,
    over_all,
    score,
)
from vllm_kprune.compare.suites.translation_prompts import (
    Direction,
    directions,
    prompt_request,
    translation_of,
)
from vllm_kprune.compare.suites.translation_scores import sentence_chrf, signatures
from vllm_kprune.options import option

__all__ = ["Translation"]

# A translation has at most about a token for each byte of the reference, in any tokenizer. A small
# model that does not end its line would write on for the time of ten good answers.
_MAX_TOKENS, _MORE_TOKENS = 256, 32
_TOKENS = 40  # of a translated sentence, about
_EXAMPLES = 40  # of each direction, those with the largest difference


@dataclass(frozen=True)
class Translation(Suite):
    """The suite `translation`."""

    @dataclass(frozen=True)
    class Options:
        """Its own options."""

        files: tuple[Path, ...] = option(
            (),
            "translation: TSV (with a header) or JSONL file with a column for each language; "
            "repeat for several.",
            flags=("--translation",),
            existing="file",
            group=DATA,
        )
        comet_model: str | None = option(
            None,
            "translation: COMET model, by name or path.",
            flags=("--comet",),
            group=MEASURED,
        )

    options: Options = Options()
    name = "translation"
    more = "--translation FILE"
    metrics = ("chrf_all", "chrf_*", "bleu_*", "comet_*")
    help = "translate parallel sentences: chrF++, BLEU, COMET where installed"

    def check(self, common: CommonOptions) -> None:
        """Read the files with sentences."""
        if len(common.languages) > 1:  # with a single language, the suite says what it needs
            sentences_of(self.options.files, common.languages)

    def amount(self, common: CommonOptions) -> Amount | None:
        """Each usable sentence in each direction."""
        if len(common.languages) < 2:
            return None
        sentences = sentences_of(self.options.files, common.languages)
        number = sum(len(usable) for _, usable in _usable(common, sentences))
        return Amount(number, number, _TOKENS, measure="points")

    def run(self, context: Context) -> SuiteResult:
        """Translate every sentence in every direction for which it has text."""
        if find_spec("sacrebleu") is None:
            reason = "sacrebleu is not installed; pip install 'vllm-kprune[compare]'"
            return SuiteResult(self.name, (), unavailable={"*": reason})
        options, files = context.options, self.options.files
        ways = directions(options.languages)
        if not ways:
            reason = f"there is only one language, {options.languages[0]}; name two with --language"
            return SuiteResult(self.name, (), unavailable={"*": reason})
        sentences = sentences_of(files, options.languages)
        tasks = list(_tasks(context, sentences))
        asked = {task.labels["direction"] for task in tasks}
        whole = answered(tasks, ask_both(context, self.name, tasks))
        done, said = spoken(whole)
        done = [row for row in done if any(translation_of(answer) for answer in row[1])]
        if whole and not done:
            reason = "no answer of either side has any text, so there is nothing to compare"
            return SuiteResult(self.name, (), unavailable={"*": reason}, notes=tuple(said))
        scores: dict[str, DirectionScores] = {}
        examples: list[Example] = []
        unavailable: dict[str, str] = {}
        notes = [*said, _where(files)]
        for direction in ways:
            rows = [row for row in done if row[0].labels["direction"] == str(direction)]
            if not rows:
                pair = direction.source, direction.target
                unavailable[f"chrf_{direction.key}"] = (
                    "no sentence was translated by both sides"
                    if str(direction) in asked
                    else why_none(files, sentences, pair)
                )
                continue
            scores[direction.key], reasons = score(direction, rows, self.options.comet_model)
            unavailable |= reasons
            examples += _examples(rows)
            notes += [f"{direction}: {signature}" for signature in signatures(direction.target)]
        if lost := len(tasks) - len(whole):
            notes.append(f"{lost} of {len(tasks)} sentences left out: one side did not answer")
        if empty := len(whole) - len(done):
            notes.append(f"{empty} of {len(tasks)} sentences left out: both answers are empty")
        lacking = [
            unavailable.get(f"chrf_{one.key}") for one in ways if str(one) in asked or not asked
        ]
        why = next(filter(None, lacking), None)
        if why:
            unavailable = {"chrf_all": why, **unavailable}
        measurements = [] if why else over_all(scores)
        for direction in ways:
            own = scores.get(direction.key, {})
            measurements += [of_one(name, direction, found) for name, found in own.items()]
        return SuiteResult(
            self.name,
            tuple(measurements),
            tuple(examples),
            unavailable,
            tuple(notes),
            main="chrf_all",
        )


def _tasks(context: Context, sentences: Sequence[Sentence]) -> Iterator[Task]:
    options = context.options
    chat = context.missing("chat") is None
    for direction, usable in _usable(options, sentences):
        for sentence in usable:
            text, reference = (sentence.texts[end] for end in (direction.source, direction.target))
            longest = min(_MAX_TOKENS, len(reference.encode()) + _MORE_TOKENS)
            yield Task(
                key=f"{direction}/{sentence.id}",
                request=prompt_request(
                    direction,
                    text,
                    chat=chat,
                    max_tokens=options.tokens(longest),
                    seed=options.seed,
                ),
                labels={"direction": str(direction), "source": text},
                reference=reference,
            )


def _usable(
    options: CommonOptions, sentences: Sequence[Sentence]
) -> Iterator[tuple[Direction, list[Sentence]]]:
    for direction in directions(options.languages):
        ends = {direction.source, direction.target}
        usable = [s for s in sentences if ends <= s.texts.keys()]
        # Drawn after the choice of usable ones: each direction has as many as the limit allows.
        yield direction, _some(usable, options.limit, options.seed)


def _some(sentences: Sequence[Sentence], limit: int | None, seed: int) -> list[Sentence]:
    """At most `limit` of the sentences, drawn by the seed, in the given order."""
    if limit is None or limit >= len(sentences):
        return list(sentences)
    chosen = random.Random(seed).sample(range(len(sentences)), limit)
    return [sentences[n] for n in sorted(chosen)]


def _examples(rows: Rows) -> list[Example]:
    scored = []
    for task, pair in rows:
        texts = translation_of(pair[0]), translation_of(pair[1])
        original, pruned = (sentence_chrf(text, task.reference or "") for text in texts)
        change = "alike" if texts[0] == texts[1] else _word(pruned - original)
        labels = {"direction": task.labels["direction"], "chrF++": change}
        example = Example(task.key, task.labels["source"], texts, labels, reference=task.reference)
        scored.append((abs(pruned - original), example))
    scored.sort(key=lambda row: -row[0])
    return [example for _, example in scored[:_EXAMPLES]]


def _word(change: float) -> str:
    return "the same" if np.isclose(change, 0) else "better" if change > 0 else "worse"


def _where(paths: Sequence[object]) -> str:
    if paths:
        return "sentences from " + ", ".join(getattr(path, "name", str(path)) for path in paths)
    return (
        "kprune's own sentences, which are few; name a file of your own (--translation) to tell "
        "similar models apart"
    )
