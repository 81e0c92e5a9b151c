"""A run: the same tasks to both endpoints, in turns, and what the suites make of the answers."""

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

from vllm_kprune.evaluate.compare.client import Client
from vllm_kprune.evaluate.compare.endpoint import Answer, Endpoint, Request
from vllm_kprune.evaluate.compare.journal import Journal
from vllm_kprune.evaluate.compare.values import SuiteResult

__all__ = ["CompareOptions", "Context", "Suite", "Task", "answered", "ask_both"]

T = TypeVar("T")


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

    `limit` bounds the items of each suite (None: all). Folders of the models are for what no
    endpoint tells; None where the user did not name them.
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

    `tell(suite, done, total)` shows progress.
    """

    endpoints: tuple[Endpoint, Endpoint]
    clients: tuple[Client, Client]
    journal: Journal
    options: CompareOptions
    runner: asyncio.Runner
    tell: Callable[[str, int, int], None] = lambda suite, done, total: None

    def wait(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine of the clients to its end: `context.wait(client.get("/kprune"))`."""
        return self.runner.run(work)


class Suite(Protocol):
    """A row of `suites.SUITES`."""

    name: str
    help: str

    def run(self, context: Context) -> SuiteResult:
        """Ask both sides and make measurements of the answers."""


def ask_both(context: Context, suite: str, tasks: Sequence[Task]) -> list[tuple[Answer, Answer]]:
    """Answers in the order of the tasks; what was kept by an earlier run is not asked again.

    A task's two requests go out one right after the other, in an order drawn from the seed, as is
    the order of the tasks. Answers that failed carry an `error` and are kept as failed. When a
    server dies, the rest carries an error too but is not kept, and `run_suites` stops after the
    suite: leave pairs with an error out of the measurements (`answered`).
    """
    raise NotImplementedError


def answered(
    tasks: Sequence[Task], pairs: Sequence[tuple[Answer, Answer]]
) -> list[tuple[Task, tuple[Answer, Answer]]]:
    """The tasks that both sides answered."""
    both = zip(tasks, pairs, strict=True)
    return [(task, pair) for task, pair in both if not any(answer.error for answer in pair)]
