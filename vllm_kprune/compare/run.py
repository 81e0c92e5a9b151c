"""A run: the same tasks to both endpoints, in turns, and what the suites make of the answers.

A suite is a function of the answers in the journal and nothing else, so that a run which was killed
and continued ends in the same report as one that was not.
"""

import asyncio
import hashlib
import json
import random
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

from vllm_kprune.compare.endpoint.client import Client
from vllm_kprune.compare.endpoint.messages import (
    Abilities,
    Answer,
    Endpoint,
    EndpointDied,
    Request,
    answer_as_json,
    answer_from_json,
)
from vllm_kprune.compare.endpoint.wire import body_of
from vllm_kprune.compare.journal import Journal
from vllm_kprune.compare.measurements import SuiteResult

__all__ = [
    "CompareOptions",
    "Context",
    "Outcome",
    "Suite",
    "Task",
    "answered",
    "ask_both",
    "ask_one",
    "run_suites",
]

T = TypeVar("T")
_MANY = 0.05  # of a suite's answers: if more failed, the report begins with that


@dataclass(frozen=True)
class Task:
    """One item to ask both sides; `key` is stable and unique in its suite."""

    key: str
    request: Request
    labels: Mapping[str, str] = field(default_factory=dict)
    reference: str | None = None


@dataclass(frozen=True)
class CompareOptions:
    """How much is asked and of what; a part of what a resumed run must agree on.

    `limit` bounds the items of each suite (None: all); `samples` are those of a prompt at T=1.
    Folders of the models are for what no endpoint tells; None where the user did not name them.
    """

    limit: int | None = None
    seed: int = 0
    concurrency: int = 4
    languages: tuple[str, ...] = ("ko", "en")
    max_tokens: int = 256
    samples: int = 1
    benchmark: Path | None = None
    translations: tuple[Path, ...] = ()
    accuracy: tuple[str, ...] = ()
    accuracy_data: Path | None = None
    batches: tuple[int, ...] = (1, 8)
    keep_rates: tuple[float, ...] = (0.9, 0.8, 0.7)
    input_data: Path | None = None
    latency_rounds: int = 20
    latency_tokens: int = 32
    comet_model: str | None = None
    original_folder: Path | None = None
    pruned_folder: Path | None = None


@dataclass(frozen=True)
class Context:
    """What a suite works with. Sides are in the order original, pruned.

    `tell(suite, done, total)` shows progress. `deaths` is empty as long as both servers live.
    `asked` has, by suite and journal key, the answers of this run that failed, None for the others.
    """

    clients: tuple[Client, Client]
    journal: Journal
    options: CompareOptions
    runner: asyncio.Runner
    tell: Callable[[str, int, int], None] = lambda suite, done, total: None
    deaths: list[str] = field(default_factory=list)
    asked: dict[str, dict[str, Answer | None]] = field(default_factory=dict)

    @property
    def endpoints(self) -> tuple[Endpoint, Endpoint]:
        """Both endpoints."""
        original, pruned = self.clients
        return original.endpoint, pruned.endpoint

    def wait(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine of the clients to its end: `context.wait(client.get("/kprune"))`."""
        return self.runner.run(work)

    def missing(self, *abilities: str) -> str | None:
        """Why one of the sides cannot do one of these; None if both can do all."""
        for client in self.clients:
            for ability in abilities:
                if not client.abilities.can(ability):
                    reason = client.abilities.missing[ability]
                    return f"{ability} of the {client.endpoint.name} endpoint: {reason}"
        return None


class Suite(Protocol):
    """A row of `suites.SUITES`."""

    @property
    def name(self) -> str:
        """How `--suite` calls it."""

    @property
    def help(self) -> str:
        """What it measures, in a sentence."""

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of its metrics, or patterns (as in a shell), the main one first."""

    def run(self, context: Context) -> SuiteResult:
        """Ask both sides and make measurements of the answers."""


@dataclass(frozen=True)
class Outcome:
    """What a run came to; `died` says why it ended before its time."""

    results: tuple[SuiteResult, ...]
    died: str | None


def run_suites(context: Context, suites: Sequence[Suite]) -> Outcome:
    """Run the suites in turn. When a server dies, the rest is told as not measured."""
    results = []
    for suite in suites:
        if context.deaths:
            results.append(SuiteResult(suite.name, (), unavailable={"*": context.deaths[0]}))
            continue
        try:
            result = suite.run(context)
        except EndpointDied as error:
            context.deaths.append(str(error))
            result = SuiteResult(suite.name, (), unavailable={"*": str(error)})
        if context.deaths:
            result = replace(result, notes=(*result.notes, f"incomplete: {context.deaths[0]}"))
        results.append(replace(result, notes=(*_failures(context, suite.name), *result.notes)))
    return Outcome(tuple(results), context.deaths[0] if context.deaths else None)


def _failures(context: Context, suite: str) -> Iterator[str]:
    """A warning where so many answers failed that the rest may not stand for all."""
    asked = context.asked.get(suite, {})
    failed = [answer for answer in asked.values() if answer]
    if len(failed) > _MANY * len(asked):
        words, count = Counter(answer.error for answer in failed).most_common(1)[0]
        again = sum(not answer.final for answer in failed)
        later = f"; the same command asks {again:,} again" if again else ""
        yield (
            f"WARNING: {len(failed):,} of {len(asked):,} answers failed and are left out "
            f"({count:,} of them: {words}){later}"
        )


def ask_both(
    context: Context, suite: str, tasks: Sequence[Task], *, concurrency: int | None = None
) -> list[tuple[Answer, Answer]]:
    """Answers in the order of the tasks; what was kept by an earlier run is not asked again.

    A task's two requests go out one right after the other, in an order drawn from the seed, as is
    the order of the tasks: drift hits both sides. Answers that failed carry an `error`; only final
    ones are kept, the others are asked again by the next run. When a server dies, the rest carries
    an error too, and `run_suites` stops after the suite: leave pairs with an error out of the
    measurements (`answered`). `concurrency` is that of the options, or less.
    """
    asking = _Asking(context, suite, tasks, ((0, 1), (1, 0)))
    at_once = min(concurrency or context.options.concurrency, context.options.concurrency)
    context.wait(asking.all(at_once))
    return [(asking.answer(i, 0), asking.answer(i, 1)) for i in range(len(tasks))]


def ask_one(context: Context, suite: str, tasks: Sequence[Task], side: int) -> list[Answer]:
    """As `ask_both`, of one side alone."""
    asking = _Asking(context, suite, tasks, ((side,),))
    context.wait(asking.all(context.options.concurrency))
    return [asking.answer(i, side) for i in range(len(tasks))]


def answered(
    tasks: Sequence[Task], pairs: Sequence[tuple[Answer, Answer]]
) -> list[tuple[Task, tuple[Answer, Answer]]]:
    """The tasks that both sides answered."""
    both = zip(tasks, pairs, strict=True)
    return [(task, pair) for task, pair in both if not any(answer.error for answer in pair)]


class _Asking:
    """The work of `ask_both`: as many tasks at a time as requests may be under way; `orders` are
    those of the sides, one of which is drawn for each task."""

    def __init__(
        self,
        context: Context,
        suite: str,
        tasks: Sequence[Task],
        orders: Sequence[tuple[int, ...]],
    ) -> None:
        assert len({task.key for task in tasks}) == len(tasks), f"{suite}: a key was given twice"
        self._context, self._suite, self._tasks, self._orders = context, suite, tasks, orders
        self._answers: dict[tuple[int, int], Answer] = {}
        self._asked = context.asked.setdefault(suite, {})
        self._failed: dict[str, Answer] = {}
        self._done = 0

    async def all(self, at_once: int) -> None:
        """Ask for what is not kept."""
        turns = self._turns()
        self._context.tell(self._suite, 0, len(self._tasks))
        try:
            async with asyncio.TaskGroup() as workers:
                for _ in range(at_once):
                    workers.create_task(self._work(turns))
        except BaseExceptionGroup as group:
            raise group.exceptions[0] from None
        if not self._context.deaths:  # a request that a dying server failed is worth another try
            for key, answer in self._failed.items():
                self._context.journal.put(self._suite, key, answer_as_json(answer))

    def _turns(self) -> Iterator[tuple[int, tuple[int, ...]]]:
        """Indices of tasks and the sides in turn, in an order that depends on the seed alone."""
        chance = random.Random(f"{self._context.options.seed} {self._suite}")
        indices = list(range(len(self._tasks)))
        chance.shuffle(indices)
        yield from [(index, chance.choice(self._orders)) for index in indices]

    async def _work(self, turns: Iterator[tuple[int, tuple[int, ...]]]) -> None:
        for index, sides in turns:
            for side in sides:
                await self._ask(index, side)
            self._done += 1
            self._context.tell(self._suite, self._done, len(self._tasks))

    async def _ask(self, index: int, side: int) -> None:
        """Find or get one answer. Once a server has died, only kept ones are found."""
        task, client = self._tasks[index], self._context.clients[side]
        journal = self._context.journal
        key = f"{task.key} {client.endpoint.name} {_digest(task.request, client.endpoint.model)}"
        kept = journal.get(self._suite, key)
        answer = None if kept is None else answer_from_json(kept)
        if answer is None or (answer.error and not answer.final):
            answer = self._asked.get(key)
        if answer is None:
            if self._context.deaths:
                return
            try:
                answer = await client.ask(task.request)
            except EndpointDied as error:
                self._context.deaths.append(str(error))
                return
            if answer.final:
                self._failed[key] = answer
            elif not answer.error:  # not in the event loop: that would hold up others' clocks
                await asyncio.to_thread(journal.put, self._suite, key, answer_as_json(answer))
        self._answers[index, side] = answer
        self._asked[key] = answer if answer.error else None

    def answer(self, index: int, side: int) -> Answer:
        """What a side said to a task."""
        not_asked = f"not asked: {self._context.deaths[0]}" if self._context.deaths else ""
        return self._answers.get((index, side)) or Answer(error=not_asked)


def _digest(request: Request, model: str) -> str:
    """A name for what is sent: a changed prompt is not answered from the journal."""
    text = json.dumps(body_of(request, model, Abilities()), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
