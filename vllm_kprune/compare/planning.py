"""What a comparison will take and what it can find, before it is run: `kprune compare --plan`.

A few prompts are answered by both sides to measure their speed, and everything else is arithmetic.
Two differences matter: the smallest that the data would prove, and the largest that they would
leave open if nothing differs at all.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, log2, sqrt
from pathlib import Path
from statistics import NormalDist
from tempfile import TemporaryDirectory

from vllm_kprune.compare.asking import Task, ask_both, ask_one
from vllm_kprune.compare.connect import Address, connect
from vllm_kprune.compare.endpoint.messages import Answer
from vllm_kprune.compare.options import CommonOptions
from vllm_kprune.compare.run import Amount, Context, Suite
from vllm_kprune.compare.statistics.intervals import rule_of_three
from vllm_kprune.compare.suites.stability_prompts import (
    STABILITY_TOKENS,
    pick,
    request_of,
    stability_prompts,
)
from vllm_kprune.errors import KPruneError

__all__ = ["PlannedSuite", "Speed", "finds", "plan"]

_LEVEL = 0.05
_TESTED = 20  # metrics that a report with the default suites corrects for
# Standard deviation of the difference between two translations of a sentence, in points of chrF++,
# where two models translate most sentences differently.
_SENTENCE_POINTS = 10.0
_LEAST_TRIED = 4


@dataclass(frozen=True)
class PlannedSuite:
    """A suite's items, requests to each side and minutes (None: unknown), and what it can find."""

    name: str
    items: int | None
    requests: int | None
    minutes: float | None
    finds: str


@dataclass(frozen=True)
class Speed:
    """Seconds of a task, with both answers: alone, one after the other or `together`, and among
    others; tokens of one answer."""

    alone: float
    together: float
    among: float
    tokens: float

    def minutes(self, amount: Amount) -> float:
        longer = amount.tokens / self.tokens if amount.tokens else 1.0
        others = amount.requests - amount.alone - amount.together
        seconds = longer * (
            amount.alone * self.alone + amount.together * self.together + others * self.among
        )
        return (seconds + amount.pause_seconds) / 60


def plan(
    original: Address,
    pruned: Address,
    suites: Sequence[Suite],
    options: CommonOptions,
    *,
    more: Sequence[Address] = (),
    timeout: float = 300.0,
) -> list[PlannedSuite]:
    """Measure how fast both sides answer, and plan each suite; nothing is kept.

    Raises `KPruneError` if a side does not answer.
    """
    with (
        TemporaryDirectory() as folder,
        connect(original, pruned, options, Path(folder), more=more, timeout=timeout) as context,
    ):
        speed = _speed(context)
    return [_planned(suite, suite.amount(options), speed) for suite in suites]


def _planned(suite: Suite, amount: Amount | None, speed: Speed) -> PlannedSuite:
    if amount is None:
        return PlannedSuite(suite.name, None, None, None, "depends on its data")
    return PlannedSuite(
        suite.name, amount.items, amount.requests, speed.minutes(amount), finds(amount)
    )


def finds(amount: Amount) -> str:
    """The smallest difference that a suite finds, and how close equal sides are shown to be.

    >>> finds(Amount(304, 608, measure="share"))
    'finds 3.3 pp; without a difference: equal within 1.0 pp'
    """
    if amount.measure == "share":
        # All items that differ point one way: p = 2 / 2**k, and Holm asks for 5 % / metrics.
        least = ceil(log2(2 * _TESTED / _LEVEL)) / amount.items
        within = rule_of_three(amount.items, 1 - _LEVEL)
        return (
            f"finds {100 * least:.1f} pp; without a difference: equal within {100 * within:.1f} pp"
        )
    if amount.measure == "points":
        errors = NormalDist().inv_cdf(1 - _LEVEL / (2 * _TESTED))
        least = errors * _SENTENCE_POINTS / sqrt(amount.items)
        return f"finds about {least:.1f} points"
    return ""


def _speed(context: Context) -> Speed:
    """Ask a prompt to warm the servers up, two alone, and as many as run at a time."""
    options = context.options
    at_once = max(_LEAST_TRIED, options.concurrency)
    chat, tokens = context.missing("chat") is None, options.tokens(STABILITY_TOKENS)
    prompts = pick(stability_prompts(options.languages, None), at_once + 3, options.seed)
    tasks = [
        Task(
            prompt.key,
            request_of(prompt, chat=chat, max_tokens=tokens, temperature=0.0, seed=options.seed),
        )
        for prompt in prompts
    ]
    _asked(context, tasks[:1])
    alone, _ = _asked(context, tasks[1:2], in_turn=True)
    together, _ = _asked(context, tasks[2:3])
    among, answers = _asked(context, tasks[3:])
    if failed := next((answer.error for answer in answers if answer.error), None):
        raise KPruneError(f"the speed of the endpoints could not be measured: {failed}")
    lengths = [answer.completion_tokens or len(answer.text) / 3 for answer in answers]
    return Speed(alone, together, among / len(tasks[3:]), max(1.0, sum(lengths) / len(lengths)))


def _asked(
    context: Context, tasks: Sequence[Task], *, in_turn: bool = False
) -> tuple[float, list[Answer]]:
    """The seconds that all sides took, at the same time or in turn, and their answers."""
    started = time.perf_counter()
    answers: list[Answer] = []
    for pair in context.pairs:
        if in_turn:
            answers += [one for side in (0, 1) for one in ask_one(pair, "plan", tasks, side)]
        else:
            answers += [one for both in ask_both(pair, "plan", tasks) for one in both]
    return time.perf_counter() - started, answers
