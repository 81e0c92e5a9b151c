"""A run: what suites are, what they work with, and how they are run in turn.

The result of a suite depends on the answers in the journal and on nothing else, so that a run that
was killed and resumed ends in the same report as an uninterrupted one.
"""

import asyncio
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Self, TypeVar

from vllm_kprune.compare.endpoint.client import Client
from vllm_kprune.compare.endpoint.messages import Answer, Endpoint, EndpointDied
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

    `dead_endpoints` says which servers died and why; it is empty while both are alive.
    `failed_answers` has, by suite and journal key, each answer of this run that failed, and None
    for each that succeeded.
    """

    clients: tuple[Client, Client]
    journal: Journal
    options: CommonOptions
    runner: asyncio.Runner
    progress: SuiteProgress = lambda suite, done, total: None
    # Lists and dicts in a frozen class on purpose: a context made by `replace` shares them, so a
    # server that died in one suite is dead for all.
    dead_endpoints: list[str] = field(default_factory=list)
    failed_answers: dict[str, dict[str, Answer | None]] = field(default_factory=dict)

    @property
    def endpoints(self) -> tuple[Endpoint, Endpoint]:
        """Both endpoints."""
        original, pruned = self.clients
        return original.endpoint, pruned.endpoint

    def wait(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine of a client to its end: `context.wait(client.get("/kprune"))`."""
        return self.runner.run(work)

    def missing(self, *abilities: str) -> str | None:
        """Why one of the sides lacks one of these abilities; None if both have all of them."""
        for client in self.clients:
            for ability in abilities:
                if not client.abilities.can(ability):
                    reason = client.abilities.missing[ability]
                    return f"{ability} of the {client.endpoint.name} endpoint: {reason}"
        return None


@dataclass(frozen=True)
class Amount:
    """How much a suite asks: `requests` of each side, about `tokens` long (None: as they come).

    `items` are what it compares. `measure` says of which kind its main metric is.
    """

    items: int
    requests: int
    tokens: int | None = None
    one_by_one: bool = False
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
    """Run the suites in turn. If a server dies, the remaining ones are reported as not measured."""
    dead = context.dead_endpoints
    results = []
    for suite in suites:
        if dead:
            results.append(SuiteResult(suite.name, (), unavailable={"*": dead[0]}))
            continue
        try:
            result = suite.run(context)
        # From `client.get` and the like. `ask_both` raises nothing: it notes the death in `dead`,
        # and the suite ends with the answers that it has.
        except EndpointDied as error:
            dead.append(str(error))
            result = SuiteResult(suite.name, (), unavailable={"*": str(error)})
        if dead:
            result = replace(result, notes=(*result.notes, f"incomplete: {dead[0]}"))
        results.append(replace(result, notes=(*_failures(context, suite.name), *result.notes)))
    return RunResult(tuple(results), dead[0] if dead else None)


def _failures(context: Context, suite: str) -> Iterator[str]:
    """A warning if so many answers failed that the others may not be representative."""
    answers = context.failed_answers.get(suite, {})
    failed = [answer for answer in answers.values() if answer]
    if len(failed) > _MANY * len(answers):
        words, count = Counter(answer.error for answer in failed).most_common(1)[0]
        again = sum(not answer.final for answer in failed)
        later = f"; the same command asks {again:,} of them again" if again else ""
        yield (
            f"WARNING: {len(failed):,} of {len(answers):,} answers failed and are left out "
            f"({count:,} of them: {words}){later}"
        )
