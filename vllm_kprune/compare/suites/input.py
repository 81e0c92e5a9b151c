"""Input pruning on one endpoint: prompt tokens saved and quality lost, at several keep rates.

This does not compare an original with a pruned vocabulary. Only the pruned endpoint is asked about
each passage, once with its input pruner off (`original` in the measurements) and once at each rate
(`pruned`). The passage is marked, so that only it is shortened. Quality is the mean log-probability
of the gold answer after the passage and the question, in nats per token. If an endpoint does not
report log-probabilities of prompts, it is the share of greedy answers that contain the gold answer.
"""

import re
import unicodedata
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
from vllm_kprune.compare.suites.likelihood import (
    context_request,
    likelihood,
    split_space,
    whole_request,
)
from vllm_kprune.compare.suites.passages import Passage, passages_of
from vllm_kprune.options import option

__all__ = ["InputPruning", "contains", "marked"]

_PRUNED = 1  # the side that is asked
_LABELS = {"ko": ("질문: ", "정답:"), "zh": ("问题：", "答案：")}
_ANSWER_TOKENS = 24
_MARKS = re.compile(r"(\\*)(</?kprune)")


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
        probe = _GoldLogprob() if _can(context, "prompt_logprobs") else _GoldContained()
        passages = passages_of(self.options.data, context.options)
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
        )


@dataclass(frozen=True)
class _GoldLogprob:
    """Quality as the log-probability of the gold answer in the prompt."""

    title: str = "log-probability of the gold answer"
    unit: str = "nats/token"
    margin: float = 0.05

    def requests(self, passage: Passage, rate: float | None, seed: int) -> dict[str, Request]:
        before, answer = split_space(prompt_of(passage), " " + passage.answer)
        extra = _pruning(rate)
        return {
            "context": context_request(before, seed, extra),
            "whole": whole_request(before, answer, seed, extra),
        }

    def quality(self, answers: Mapping[str, Answer], gold: str) -> float | None:
        known = likelihood(answers["context"], answers["whole"])
        return known.mean if known else None


@dataclass(frozen=True)
class _GoldContained:
    """Quality as whether a greedy answer contains the gold answer."""

    title: str = "answers that contain the gold answer"
    unit: str = "share"
    margin: float = 0.02

    def requests(self, passage: Passage, rate: float | None, seed: int) -> dict[str, Request]:
        prompt, tokens, extra = prompt_of(passage), _ANSWER_TOKENS, _pruning(rate)
        request = Request("completion", prompt=prompt, max_tokens=tokens, seed=seed, extra=extra)
        return {"context": request}

    def quality(self, answers: Mapping[str, Answer], gold: str) -> float | None:
        return float(contains(answers["context"].text, gold))


@dataclass(frozen=True)
class _PassageAnswers:
    """The answers about one passage at one rate; `tokens` is None if one of them failed."""

    tokens: int | None
    parts: Mapping[str, Answer]

    @classmethod
    def of(cls, probe: Any, answers: Mapping[str, Answer], start: str) -> "_PassageAnswers":
        found = {key.removeprefix(start): a for key, a in answers.items() if key.startswith(start)}
        failed = any(answer.error for answer in found.values())
        return cls(None if failed else found["context"].prompt_tokens, {} if failed else found)


def prompt_of(passage: Passage) -> str:
    """The marked passage, the question, and the beginning of the line with the answer."""
    ask, answer = _LABELS.get(passage.language, ("Question: ", "Answer:"))
    return f"{marked(passage.context)}\n{ask}{passage.question}\n{answer}"


def marked(text: str) -> str:
    r"""The text between marks of the input pruner; whatever looks like a mark in it is escaped.

    >>> marked("a <kprune> b")
    '<kprune>a \\<kprune> b</kprune>'
    """
    escaped = _MARKS.sub(lambda found: found[1] * 2 + "\\" + found[2], text)
    slashes = len(escaped) - len(escaped.rstrip("\\"))
    return f"<kprune>{escaped}{slashes * chr(92)}</kprune>"


def contains(answer: str, gold: str) -> bool:
    """Whether the answer contains the gold one, regardless of case, width and spaces.

    >>> contains("It is  Half-Timbered.", "half-timbered")
    True
    """
    return _plain(gold) in _plain(answer)


def _plain(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def _pruning(rate: float | None) -> dict[str, Any]:
    options = {"kprune_keep": "off"} if rate is None else {"kprune_keep": rate}
    return {"vllm_xargs": options | ({} if rate is None else {"kprune_min_tokens": 1})}


def _no_pruner(context: Context) -> str | None:
    """Why nothing can be measured, or None."""
    if not _can(context, "completion"):
        return f"the endpoint has no completions: {_missing(context, 'completion')}"
    status = context.wait(context.clients[_PRUNED].get("/kprune"))
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
        if all("whole" not in parts and parts for parts in sides):
            texts = sides[0]["context"].text.strip(), sides[1]["context"].text.strip()
            prompt = f"{passage.context}\n{passage.question}"
            labels = {"language": passage.language, "keep": _shown(rate)}
            examples.append(Example(passage.id, prompt, texts, labels, reference=passage.answer))
    return examples


def _shown(rate: float | None) -> str:
    return "off" if rate is None else f"{rate:g}"
