"""Input pruning on one endpoint: prompt tokens saved and quality lost, at several keep rates.

This does not compare an original with a pruned vocabulary. Only the pruned endpoint is asked about
each passage, once with its input pruner off (`original` in the measurements) and once at each rate
(`pruned`). The passage is marked, so that only it is shortened. Quality is the mean log-probability
of the gold answer after the passage and the question, in nats per token. If an endpoint does not
report log-probabilities of prompts, it is the share of greedy answers that contain the gold answer.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vllm_kprune.compare.asking import Task, ask_one
from vllm_kprune.compare.endpoint.messages import Answer, Request
from vllm_kprune.compare.measurements import Example, Measurement, Metric, SuiteResult
from vllm_kprune.compare.options import DATA, MEASURED, CommonOptions
from vllm_kprune.compare.run import Context, Suite
from vllm_kprune.compare.suites.input_quality import GoldContained, GoldLogprob
from vllm_kprune.compare.suites.passages import Passage, passages_of
from vllm_kprune.options import option

__all__ = ["InputPruning"]

_PRUNED = 1  # the side that is asked


@dataclass(frozen=True)
class InputPruning(Suite):
    """The suite `input`."""

    @dataclass(frozen=True)
    class Options:
        """Its own options."""

        keep_rates: tuple[float, ...] = option(
            (0.9, 0.8, 0.7),
            "input: share of a prompt to keep; repeat for several.",
            flags=("--keep",),
            least=0.05,
            most=0.99,
            least_items=1,
            group=MEASURED,
        )
        data: Path | None = option(
            None,
            "input: JSONL file with passages, questions and answers.",
            flags=("--input-data",),
            existing="file",
            group=DATA,
        )

    options: Options = Options()
    name = "input"
    more = "--input-data FILE"
    metrics = ("quality@*", "saved@*")
    help = "input pruning on the pruned endpoint: prompt tokens saved, quality lost"

    def check(self, common: CommonOptions) -> None:
        """Read the file with passages."""
        passages_of(self.options.data, common)

    def run(self, context: Context) -> SuiteResult:
        """Ask about every passage, with the pruner off and at every rate."""
        reason = _no_pruner(context)
        if reason:
            return SuiteResult(self.name, (), unavailable={"*": reason})
        probe = GoldLogprob() if _can(context, "prompt_logprobs") else GoldContained()
        passages = passages_of(self.options.data, context.options)
        # None stands for "pruner off". The lowest rate comes last, and is the one in the examples.
        rates: list[float | None] = [None, *sorted(self.options.keep_rates, reverse=True)]
        requests = {
            f"{passage.id}/{_shown(rate)}/{part}": request
            for passage in passages
            for rate in rates
            for part, request in probe.requests(passage, rate, context.options.seed).items()
        }
        answers = _ask(context, self.name, requests)
        table = {
            (passage.id, rate): _PassageAnswers.of(probe, answers, f"{passage.id}/{_shown(rate)}/")
            for passage in passages
            for rate in rates
        }
        measurements = [m for rate in rates[1:] for m in _measure(probe, passages, table, rate)]
        notes = ["only the pruned endpoint: original = pruner off, pruned = at the keep rate"]
        return SuiteResult(
            self.name,
            tuple(measurements),
            tuple(_examples(passages, table, rates[-1])),
            {} if measurements else {"*": "the endpoint did not answer about any passage"},
            tuple(notes),
            # Where most is pruned, a loss of quality shows first.
            main=f"quality@{_shown(rates[-1])}",
        )


@dataclass(frozen=True)
class _PassageAnswers:
    """The answers about one passage at one rate; `tokens` is None if one of them failed."""

    tokens: int | None
    parts: Mapping[str, Answer]

    @classmethod
    def of(cls, probe: Any, answers: Mapping[str, Answer], start: str) -> "_PassageAnswers":
        found = {key.removeprefix(start): a for key, a in answers.items() if key.startswith(start)}
        failed = any(answer.error for answer in found.values())
        # `prompt_tokens` is None if the endpoint does not report it; the passage is then left out.
        return cls(None if failed else found["context"].prompt_tokens, {} if failed else found)


def _no_pruner(context: Context) -> str | None:
    """Why nothing can be measured, or None."""
    if not _can(context, "completion"):
        return f"the endpoint has no completions: {_missing(context, 'completion')}"
    status = context.get(_PRUNED, "/kprune")
    if not isinstance(status, dict):
        return "the pruned endpoint has no /kprune"
    pruner = status.get("input_pruner")
    if not isinstance(pruner, dict) or pruner.get("available") is not True:
        return "the pruned endpoint has no input pruner; serve it with --kprune-input-pruner"
    return None


def _can(context: Context, name: str) -> bool:
    return context.clients[_PRUNED].abilities.can(name)


def _missing(context: Context, name: str) -> str:
    return context.clients[_PRUNED].abilities.missing[name]


def _ask(context: Context, suite: str, requests: Mapping[str, Request]) -> dict[str, Answer]:
    """Answers by key; the requests of all rates are sent in a random order."""
    tasks = [Task(key, request) for key, request in requests.items()]
    answers = ask_one(context, suite, tasks, _PRUNED)
    return dict(zip(requests, answers, strict=True))


Table = Mapping[tuple[str, float | None], _PassageAnswers]


def _measure(
    probe: Any, passages: Sequence[Passage], table: Table, rate: float | None
) -> list[Measurement]:
    """`quality@RATE` and `saved@RATE` over the passages answered both at that rate and without."""
    rows = []
    for passage in passages:
        off, on = table[passage.id, None], table[passage.id, rate]
        if off.tokens is None or on.tokens is None:
            continue
        quality = [probe.quality(side.parts, passage.answer) for side in (off, on)]
        if None not in quality:
            # The last two are the columns of a ratio: tokens saved, tokens without the pruner.
            rows.append((passage.id, quality, off.tokens - on.tokens, off.tokens))
    if not rows:
        return []
    items = tuple(row[0] for row in rows)
    qualities = np.array([row[1] for row in rows], np.float64)
    saved = np.array([row[2:] for row in rows], np.float64)
    shown = _shown(rate)
    quality_metric = Metric(
        f"quality@{shown}", f"{probe.title}, keep {shown}", probe.unit, "higher", probe.margin
    )
    saved_metric = Metric(
        f"saved@{shown}", f"prompt tokens saved, keep {shown}", "share", "neither", 0.01, "ratio"
    )
    return [
        Measurement(quality_metric, items, qualities[:, :1], qualities[:, 1:]),
        Measurement(saved_metric, items, saved, None),
    ]


def _examples(passages: Sequence[Passage], table: Table, rate: float | None) -> list[Example]:
    """Examples of greedy answers; log-probabilities have no text to show."""
    examples = []
    for passage in passages:
        sides = [table[passage.id, None].parts, table[passage.id, rate].parts]
        # `whole` is a part of `GoldLogprob` only.
        if all("whole" not in parts and parts for parts in sides):
            texts = sides[0]["context"].text.strip(), sides[1]["context"].text.strip()
            prompt = f"{passage.context}\n{passage.question}"
            labels = {"language": passage.language, "keep": _shown(rate)}
            examples.append(Example(passage.id, prompt, texts, labels, reference=passage.answer))
    return examples


def _shown(rate: float | None) -> str:
    return "off" if rate is None else f"{rate:g}"
