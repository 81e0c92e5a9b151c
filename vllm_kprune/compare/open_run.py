"""The beginning of a run: who is compared, whether they answer, what they can do, and where the
answers are kept. Everything that can be a mistake is found here, before anything is measured."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from vllm_kprune.compare.endpoint.client import Client
from vllm_kprune.compare.endpoint.messages import (
    Abilities,
    Endpoint,
    EndpointDied,
    api_key,
    clean_url,
    same_endpoint,
)
from vllm_kprune.compare.endpoint.probe import find_model, probe
from vllm_kprune.compare.endpoint_info import ask_facts
from vllm_kprune.compare.journal import Journal
from vllm_kprune.compare.run import CompareOptions, Context
from vllm_kprune.errors import KPruneError, shown

__all__ = ["Address", "open_run", "settings_of"]

_OPTIONS = TypeAdapter(CompareOptions)


@dataclass(frozen=True)
class Address:
    """Where a side is: `model` None for the only one that is served there.

    `name` stands for the address in a journal and a report, where servers that the caller starts
    have another port each time.
    """

    url: str
    model: str | None = None
    name: str | None = None


@contextmanager
def open_run(
    original: Address,
    pruned: Address,
    options: CompareOptions,
    folder: Path,
    *,
    gated: bool = False,
    timeout: float = 300.0,
    first_wait: float = 0.5,
    tell: Callable[[str, int, int], None] = lambda suite, done, total: None,
) -> Iterator[Context]:
    """A context for `run_suites`; a `KPruneError` if a side does not answer, or if `folder` holds
    a run with other settings, or if both sides of a `gated` run are the same endpoint."""
    sides = {"original": original, "pruned": pruned}
    endpoints = [
        Endpoint(name, clean_url(f"--{name}", side.url), side.model or "", api_key(name))
        for name, side in sides.items()
    ]
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
            for client, side in zip(clients, sides.values(), strict=True):
                model = runner.run(_greet(client, side.model))
                client.endpoint = replace(client.endpoint, model=model)
            first, second = clients
            if gated and same_endpoint(first.endpoint, second.endpoint):
                raise KPruneError(_same(first.endpoint))
            models = first.endpoint.model, second.endpoint.model
            settings = settings_of((original, pruned), models, options)
            with Journal(folder, settings) as journal:
                for client in clients:
                    _learn(client, journal, runner)
                yield Context((first, second), journal, options, runner, tell)
        finally:
            for client in clients:
                runner.run(client.close())


def settings_of(
    addresses: tuple[Address, Address], models: tuple[str, str], options: CompareOptions
) -> dict[str, Any]:
    """What a resumed run must agree on, as JSON."""
    settings: dict[str, Any] = _OPTIONS.dump_python(options, mode="json")
    for side, address, model in zip(("original", "pruned"), addresses, models, strict=True):
        settings[side] = address.name or clean_url(f"--{side}", address.url)
        settings[f"{side}_model"] = model
    return settings


def _same(endpoint: Endpoint) -> str:
    return (
        f"both sides are the same endpoint ({endpoint.url}, model {shown(endpoint.model)}), where "
        "every --fail-on condition would be judged of a model against itself; name the other "
        "server with --original or --pruned, or leave --fail-on out of an A/A run"
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
    """What the endpoint is and can do, as the first run found: a resumed one asks alike."""
    name = client.endpoint.name
    missing = journal.step(
        "endpoints", f"missing of {name}", lambda: dict(runner.run(probe(client)).missing)
    )
    client.abilities = Abilities({str(name): str(reason) for name, reason in missing.items()})
    journal.step("endpoints", f"facts of {name}", lambda: runner.run(ask_facts(client)))
