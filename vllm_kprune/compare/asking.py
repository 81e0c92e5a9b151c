"""Ask both endpoints the same tasks at the same time, and keep the answers in the journal."""

import asyncio
import hashlib
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from vllm_kprune.compare.endpoint.messages import (
    Abilities,
    Answer,
    EndpointDied,
    Request,
    answer_as_json,
    answer_from_json,
)
from vllm_kprune.compare.endpoint.request_body import body_of
from vllm_kprune.compare.run import Context

__all__ = ["Task", "answered", "ask_both", "ask_one"]


@dataclass(frozen=True)
class Task:
    """One item for both sides; `key` is stable, and unique in its suite."""

    key: str
    request: Request
    labels: Mapping[str, str] = field(default_factory=dict)
    reference: str | None = None


def ask_both(
    context: Context, suite: str, tasks: Sequence[Task], *, alone: bool = False
) -> list[tuple[Answer, Answer]]:
    """Both answers to each task, in the order of the tasks.

    Answers that an earlier run kept are not requested again. The two requests of a task are sent
    at the same time, and the order of the tasks is drawn from the seed, so that drift affects both
    sides alike. A failed answer carries an `error`: only final errors are
    kept, and the next run asks for the others again. If a server dies, the remaining answers carry
    an error too, and `run_suites` stops after the suite. Leave pairs with an error out of the
    measurements (`answered`). With `alone`, each server has one request at a time.
    """
    asking = _Asking(context, suite, tasks, (0, 1))
    context.wait(asking.all(1 if alone else context.options.concurrency))
    return [(asking.answer(i, 0), asking.answer(i, 1)) for i in range(len(tasks))]


def ask_one(context: Context, suite: str, tasks: Sequence[Task], side: int) -> list[Answer]:
    """Like `ask_both`, but for one side only."""
    asking = _Asking(context, suite, tasks, (side,))
    context.wait(asking.all(context.options.concurrency))
    return [asking.answer(i, side) for i in range(len(tasks))]


def answered(
    tasks: Sequence[Task], pairs: Sequence[tuple[Answer, Answer]]
) -> list[tuple[Task, tuple[Answer, Answer]]]:
    """The tasks that both sides answered."""
    both = zip(tasks, pairs, strict=True)
    return [(task, pair) for task, pair in both if not any(answer.error for answer in pair)]


class _Asking:
    """The work of `ask_both`: as many workers as requests to one side may be in flight."""

    def __init__(
        self, context: Context, suite: str, tasks: Sequence[Task], sides: tuple[int, ...]
    ) -> None:
        assert len({task.key for task in tasks}) == len(tasks), f"{suite}: a key was given twice"
        self._context, self._suite, self._tasks, self._sides = context, suite, tasks, sides
        self._answers: dict[tuple[int, int], Answer] = {}
        # Shared by all calls for this suite in the run. lm-eval evaluates one side after the other:
        # the second call must not repeat what failed in the first.
        self._known = context.failed_answers.setdefault(suite, {})
        self._failed: dict[str, Answer] = {}
        self._done = 0

    async def all(self, at_once: int) -> None:
        """Ask for the answers that are not in the journal."""
        # One iterator for all workers: whoever is free takes the next task.
        turns = self._turns()
        self._context.progress(self._suite, 0, len(self._tasks))
        try:
            async with asyncio.TaskGroup() as workers:
                for _ in range(at_once):
                    workers.create_task(self._work(turns))
        except BaseExceptionGroup as group:
            # The caller expects the error itself, such as a full disk or a refused key.
            error: BaseException = group
            while isinstance(error, BaseExceptionGroup):
                error = error.exceptions[0]
            raise error from None
        # While a server dies, an error says little about the request: it deserves another try.
        if not self._context.dead_endpoints:
            for key, answer in self._failed.items():
                self._context.journal.put(self._suite, key, answer_as_json(answer))

    def _turns(self) -> Iterator[int]:
        """Indices of tasks in an order that depends on the seed alone."""
        # Seeded by a text: unlike `hash`, `Random` gives it the same meaning in every process.
        chance = random.Random(f"{self._context.options.seed} {self._suite}")
        indices = list(range(len(self._tasks)))
        chance.shuffle(indices)
        return iter(indices)

    async def _work(self, turns: Iterator[int]) -> None:
        for index in turns:
            async with asyncio.TaskGroup() as sides:
                for side in self._sides:
                    sides.create_task(self._ask(index, side))
            self._done += 1
            self._context.progress(self._suite, self._done, len(self._tasks))

    async def _ask(self, index: int, side: int) -> None:
        """Find or request one answer. Once a server has died, only kept answers are found."""
        task, client = self._tasks[index], self._context.clients[side]
        journal = self._context.journal
        key = f"{task.key} {client.endpoint.name} {_digest(task.request, client.endpoint.model)}"
        kept = journal.get(self._suite, key)
        answer = None if kept is None else answer_from_json(kept)
        if answer is None or (answer.error and not answer.final):
            answer = self._known.get(key)  # failed in this run: the next run asks again
        if answer is None:
            if self._context.dead_endpoints:
                return
            try:
                answer = await client.ask(task.request)
            except EndpointDied as error:
                self._context.dead_endpoints.append(str(error))
                return
            if answer.final:
                self._failed[key] = answer
            elif not answer.error:  # in a thread, as a slow disk would disturb others' timings
                await asyncio.to_thread(journal.put, self._suite, key, answer_as_json(answer))
        self._answers[index, side] = answer
        # Successes are kept as None: the share of failures needs their number (`run._failures`).
        self._known[key] = answer if answer.error else None

    def answer(self, index: int, side: int) -> Answer:
        """The answer of one side to one task."""
        dead = self._context.dead_endpoints
        not_asked = f"not asked: {dead[0]}" if dead else ""
        return self._answers.get((index, side)) or Answer(error=not_asked)


def _digest(request: Request, model: str) -> str:
    """A name for what is sent, so that a changed prompt is not answered from the journal."""
    # With all abilities, not those of this endpoint: the name says what the suite wants to know,
    # whatever was found missing.
    text = json.dumps(body_of(request, model, Abilities()), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
