"""A run: what suites are, what they work with, and how they are run in turn.

The result of a suite depends on the answers in the journal and on nothing else, so that a run that
was killed and resumed ends in the same report as an uninterrupted one.
"""

import asyncio
import json
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Self, TypeVar

from vllm_kprune.compare.endpoint.client import Client
from vllm_kprune.compare.endpoint.messages import PRUNED, Answer, Endpoint, EndpointDied
from vllm_kprune.compare.journal import Journal
from vllm_kprune.compare.measurements import SuiteResult
from vllm_kprune.compare.options import CommonOptions, NoOptions

__all__ = ["Amount", "Context", "RunResult", "Suite", "SuiteProgress", "run_suites"]

T = TypeVar("T")
SuiteProgress = Callable[[str, int, int], None]
"""Shows progress: name of the suite, number of items done, number of all items."""

_MANY = 0.05  # share of failed answers above which a suite's notes begin with a warning


@dataclass(frozen=True)
class Context:
    """What a suite works with. Clients are in the order original, pruned.

    A run with several pruned sides has one client for each of them; suites get the context of one
    pair (`pairs`). `recorded` means that there are no servers, only kept answers.
    `dead_endpoints` says which servers died and why; it is empty while both are alive.
    `failed_answers` has, by suite and journal key, each answer of this run that failed, and None
    for each that succeeded.
    """

    clients: tuple[Client, ...]
    journal: Journal
    options: CommonOptions
    runner: asyncio.Runner
    progress: SuiteProgress = lambda suite, done, total: None
    # Lists and dicts in a frozen class on purpose: a context made by `replace` shares them, so a
    # server that died in one suite is dead for all.
    dead_endpoints: list[str] = field(default_factory=list)
    failed_answers: dict[str, dict[str, Answer | None]] = field(default_factory=dict)
    recorded: bool = False

    @property
    def endpoints(self) -> tuple[Endpoint, ...]:
        """The endpoints, the original first."""
        return tuple(client.endpoint for client in self.clients)

    @property
    def pairs(self) -> "tuple[Context, ...]":
        """The original with each pruned side in turn.

        All share one journal, so the original is asked for each answer once.
        """
        original, *pruned = self.clients
        if len(pruned) == 1:
            return (self,)
        return tuple(
            replace(
                self, clients=(original, one), progress=_named(self.progress, one.endpoint.name)
            )
            for one in pruned
        )

    @property
    def pair_key(self) -> str:
        """What keys of the journal begin with that belong to a pair, not to one side."""
        name = self.clients[1].endpoint.name
        return "" if name == PRUNED else f"{name}/"

    def wait(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine of a client to its end: `context.wait(client.get("/kprune"))`."""
        return self.runner.run(work)

    def get(self, side: int, path: str) -> Any:
        """What `Client.get` finds, kept for when the server is gone or answers are judged again."""
        client = self.clients[side]
        key = f"{client.endpoint.name} GET {path}"
        value = None if self.recorded else self.wait(client.get(path))
        if value is None:
            return self.journal.get("endpoints", key)
        if _is_json(value) and value != self.journal.get("endpoints", key):
            self.journal.put("endpoints", key, value)
        return value

    def missing(self, *abilities: str) -> str | None:
        """Why one of the sides lacks one of these abilities; None if both have all of them."""
        for client in self.clients:
            for ability in abilities:
                if not client.abilities.can(ability):
                    reason = client.abilities.missing[ability]
                    return f"{ability} of the {client.endpoint.name} endpoint: {reason}"
        return None


def _is_json(value: Any) -> bool:
    """Whether there is a value, without the NaN that Python's parser lets through."""
    try:
        json.dumps(value, allow_nan=False)
    except (ValueError, RecursionError):
        return False
    return value is not None


def _named(progress: SuiteProgress, side: str) -> SuiteProgress:
    return lambda suite, done, total: progress(f"{suite}, {side}", done, total)


@dataclass(frozen=True)
class Amount:
    """How much a suite asks: `requests` of each side, about `tokens` long (None: as they come).

    `items` are what it compares. `alone` of the requests have both servers to themselves, one after
    the other, `together` both at the same time. `pause_seconds` are spent waiting. `measure` says
    of which kind its main metric is.
    """

    items: int
    requests: int
    tokens: int | None = None
    alone: int = 0
    together: int = 0
    pause_seconds: float = 0.0
    measure: Literal["share", "points", ""] = ""


class Suite(ABC):
    """A suite: one file in `suites/` and one row of the table `suites.SUITES`.

    A subclass is a frozen dataclass. It sets `name` (for `--suite`), `help` (one sentence) and
    `metrics` (names or shell patterns of its metrics, the main one first). `more` is the option
    that gives it more items, if any does. A suite with options of its own nests a frozen dataclass
    `Options`, whose fields `vllm_kprune.options` declares, and has
    a field `options` of that type. The options of `kprune compare` are made from these classes.
    """

    name: str
    help: str
    metrics: tuple[str, ...]
    more: str = ""

    @property
    def options(self) -> Any:
        """The suite's own options."""
        return NoOptions()

    def configured(self, options: Any) -> Self:
        """The suite with other options of its own."""
        # A suite without options has no field to replace, and always returns here.
        if options == self.options:
            return self
        return replace(self, options=options)  # type: ignore[type-var]

    def check(self, common: CommonOptions) -> None:  # noqa: B027 - most suites have nothing to check
        """Raise a `KPruneError` for options or data files that the suite could not use.

        This is called before the folder of the run is made and before anything is asked.
        """

    def cautions(self, common: CommonOptions) -> Sequence[str]:
        """What a user should know before anything is asked, each beginning with WARNING."""
        return ()

    def amount(self, common: CommonOptions) -> Amount | None:
        """How much the suite will ask; None where only running it can tell."""
        return None

    @abstractmethod
    def run(self, context: Context) -> SuiteResult:
        """Ask both sides, and turn their answers into measurements."""


@dataclass(frozen=True)
class RunResult:
    """The results of a run; `died` says why it ended early, or is None."""

    results: tuple[SuiteResult, ...]
    died: str | None


def run_suites(context: Context, suites: Sequence[Suite]) -> RunResult:
    """Run the suites in turn, each for every pruned side.

    If a server dies, the remaining ones are reported as not measured.
    """
    pairs, dead = context.pairs, context.dead_endpoints
    results = [
        replace(_run(pair, suite), side=pair.clients[1].endpoint.name if len(pairs) > 1 else "")
        for suite in suites
        for pair in pairs
    ]
    return RunResult(tuple(results), dead[0] if dead else None)


def _run(context: Context, suite: Suite) -> SuiteResult:
    dead = context.dead_endpoints
    if dead:
        return SuiteResult(suite.name, (), unavailable={"*": dead[0]})
    try:
        result = suite.run(context)
    # From `client.get` and the like. `ask_both` raises nothing: it notes the death in `dead`,
    # and the suite ends with the answers that it has.
    except EndpointDied as error:
        dead.append(str(error))
        result = SuiteResult(suite.name, (), unavailable={"*": str(error)})
    if dead:
        result = replace(result, notes=(*result.notes, f"incomplete: {dead[0]}"))
    return replace(result, notes=(*_failures(context, suite.name), *result.notes))


def _failures(context: Context, suite: str) -> Iterator[str]:
    """A warning if so many answers failed that the others may not be representative."""
    names = {endpoint.name for endpoint in context.endpoints}
    # A key ends in the side and a digest (`asking`); other pairs keep theirs here as well.
    every = context.failed_answers.get(suite, {}).items()
    answers = {key: answer for key, answer in every if key.rsplit(" ", 2)[1] in names}
    failed = [answer for answer in answers.values() if answer]
    if len(failed) > _MANY * len(answers):
        words, count = Counter(answer.error for answer in failed).most_common(1)[0]
        again = sum(not answer.final for answer in failed)
        later = f"; the same command asks {again:,} of them again" if again else ""
        yield (
            f"WARNING: {len(failed):,} of {len(answers):,} answers failed and are left out "
            f"({count:,} of them: {words}){later}"
        )
