"""The beginning of a run: reach both endpoints, probe what they can do, and open the journal.

Every mistake that can be found before anything is measured is found here.
"""

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

from vllm_kprune.compare.endpoint.client import Client
from vllm_kprune.compare.endpoint.description import describe_endpoint
from vllm_kprune.compare.endpoint.extras import NO_EXTRAS, Extras
from vllm_kprune.compare.endpoint.messages import (
    ORIGINAL,
    PRUNED,
    Abilities,
    Endpoint,
    EndpointDied,
    api_key,
    clean_url,
    same_endpoint,
)
from vllm_kprune.compare.endpoint.probe import find_model, probe
from vllm_kprune.compare.journal import Journal
from vllm_kprune.compare.options import CommonOptions
from vllm_kprune.compare.run import Context, Suite, SuiteProgress
from vllm_kprune.compare.settings import side_keys, with_options_of
from vllm_kprune.errors import KPruneError, shown

__all__ = ["Address", "ask_alike", "connect", "settings_of"]


@dataclass(frozen=True)
class Address:
    """Where a side is found; `model` is None for the only model that is served there.

    `name` replaces the URL in the journal and the report. It is for servers that the caller starts,
    which have another port each time. `extras` are added to every request. `side` names a pruned
    side where there are several; by default they are `pruned`, `pruned2` and so on.
    """

    url: str
    model: str | None = None
    name: str | None = None
    extras: Extras = NO_EXTRAS
    side: str = ""


@contextmanager
def connect(
    original: Address,
    pruned: Address,
    options: CommonOptions,
    folder: Path,
    *,
    more: Sequence[Address] = (),
    suites: Sequence[Suite] = (),
    gated: bool = False,
    timeout: float = 300.0,
    first_wait: float = 0.5,
    progress: SuiteProgress = lambda suite, done, total: None,
) -> Iterator[Context]:
    """A context for `run_suites`; `suites` are those whose options are not the defaults.

    `more` are further pruned sides. Raises a `KPruneError` if a side does not answer, if `folder`
    holds a run with other settings, or if two sides of a `gated` run are the same endpoint.
    """
    addresses = (original, pruned, *more)
    endpoints = [
        replace(one, url=clean_url(one.option, one.url), api_key=api_key(one.name))
        for one in _named(addresses)
    ]
    # One event loop for the whole run, because connections belong to the loop that opened them.
    with asyncio.Runner() as runner:
        clients = [
            Client(
                endpoint,
                concurrency=options.concurrency,
                timeout=timeout,
                first_wait=first_wait,
            )
            for endpoint in endpoints
        ]
        try:
            # Before the journal makes the folder: a wrong address leaves nothing behind.
            for client, side in zip(clients, addresses, strict=True):
                model = runner.run(_greet(client, side.model))
                client.endpoint = replace(client.endpoint, model=model)
            first, *others = (client.endpoint for client in clients)
            for other in others if gated else ():
                if same_endpoint(first, other):
                    raise KPruneError(_same(first))
            models = [client.endpoint.model for client in clients]
            settings = settings_of(addresses, models, options, suites)
            with Journal(folder, settings) as journal:
                # Kept, so that a resumed run ends in the same report.
                journal.step("endpoints", "date", lambda: date.today().isoformat())
                for client in clients:
                    _learn(client, journal, runner)
                ask_alike(clients)
                yield Context(tuple(clients), journal, options, runner, progress)
        finally:
            for client in clients:
                runner.run(client.close())


def settings_of(
    addresses: Sequence[Address],
    models: Sequence[str],
    options: CommonOptions,
    suites: Sequence[Suite] = (),
) -> dict[str, Any]:
    """The settings that a resumed run must share, as JSON (`settings.py`)."""
    endpoints = [
        replace(one, model=model) for one, model in zip(_named(addresses), models, strict=True)
    ]
    urls = [
        address.name or clean_url(one.option, one.url)
        for address, one in zip(addresses, endpoints, strict=True)
    ]
    return with_options_of(endpoints, urls, options, suites)


def ask_alike(clients: Sequence[Client]) -> None:
    """Ask all sides for completions if one of several pruned sides has no chats.

    The original would otherwise be asked twice, in two ways.
    """
    original, *pruned = clients
    for client in pruned if len(pruned) > 1 else ():
        if reason := client.abilities.missing.get("chat"):
            why = f"{client.endpoint.name} has none: {reason}"
            missing = {"chat": why, **original.abilities.missing}
            original.abilities = Abilities(missing)


def _named(addresses: Sequence[Address]) -> list[Endpoint]:
    """An endpoint for each address, with the name of its side."""
    sides = [
        Endpoint(address.side or key, address.url, address.model or "", extras=address.extras)
        for key, address in zip(side_keys(len(addresses)), addresses, strict=True)
    ]
    names = [one.name for one in sides]
    if names[0] != ORIGINAL or ORIGINAL in names[1:] or len({*names}) < len(names):
        raise KPruneError(f"--{PRUNED}: the names of the sides must differ, got {', '.join(names)}")
    return sides


def _same(endpoint: Endpoint) -> str:
    return (
        f"both sides are the same endpoint ({endpoint.url}, model {shown(endpoint.model)}), and "
        "every --fail-on condition would compare a model with itself; name the other server with "
        "--original or --pruned, or leave --fail-on out of an A/A run"
    )


async def _greet(client: Client, model: str | None) -> str:
    try:
        return await find_model(client, model)
    except EndpointDied as error:
        raise KPruneError(
            f"the {client.endpoint.name} endpoint does not answer at {client.endpoint.url} "
            f"({error.reason}); is the server running?"
        ) from None


def _learn(client: Client, journal: Journal, runner: asyncio.Runner) -> None:
    """Probe the endpoint, or recall what the first run found, so that a resumed run asks alike."""
    name = client.endpoint.name
    # Asked once for a run: other abilities would change the requests between two halves of it.
    missing = journal.step(
        "endpoints", f"missing of {name}", lambda: dict(runner.run(probe(client)).missing)
    )
    client.abilities = Abilities({str(name): str(reason) for name, reason in missing.items()})
    journal.step(
        "endpoints", f"description of {name}", lambda: runner.run(describe_endpoint(client))
    )
