"""The beginning of a run: reach both endpoints, probe what they can do, and open the journal.

Every mistake that can be found before anything is measured is found here.
"""

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from vllm_kprune.compare.endpoint.client import Client
from vllm_kprune.compare.endpoint.description import describe_endpoint
from vllm_kprune.compare.endpoint.extras import NO_EXTRAS, Extras
from vllm_kprune.compare.endpoint.messages import (
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
from vllm_kprune.compare.suites import SUITES
from vllm_kprune.errors import KPruneError, shown

__all__ = ["Address", "connect", "settings_of"]


@dataclass(frozen=True)
class Address:
    """Where a side is found; `model` is None for the only model that is served there.

    `name` replaces the URL in the journal and the report. It is for servers that the caller starts,
    which have another port each time. `extras` are added to every request.
    """

    url: str
    model: str | None = None
    name: str | None = None
    extras: Extras = NO_EXTRAS


@contextmanager
def connect(
    original: Address,
    pruned: Address,
    options: CommonOptions,
    folder: Path,
    *,
    suites: Sequence[Suite] = (),
    gated: bool = False,
    timeout: float = 300.0,
    first_wait: float = 0.5,
    progress: SuiteProgress = lambda suite, done, total: None,
) -> Iterator[Context]:
    """A context for `run_suites`; `suites` are those whose options are not the defaults.

    Raises a `KPruneError` if a side does not answer, if `folder` holds a run with other settings,
    or if both sides of a `gated` run are the same endpoint.
    """
    sides = {"original": original, "pruned": pruned}
    endpoints = [
        Endpoint(name, clean_url(f"--{name}", one.url), one.model or "", api_key(name), one.extras)
        for name, one in sides.items()
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
            for client, side in zip(clients, sides.values(), strict=True):
                model = runner.run(_greet(client, side.model))
                client.endpoint = replace(client.endpoint, model=model)
            first, second = clients
            if gated and same_endpoint(first.endpoint, second.endpoint):
                raise KPruneError(_same(first.endpoint))
            models = first.endpoint.model, second.endpoint.model
            settings = settings_of((original, pruned), models, options, suites)
            with Journal(folder, settings) as journal:
                # Kept, so that a resumed run ends in the same report.
                journal.step("endpoints", "date", lambda: date.today().isoformat())
                for client in clients:
                    _learn(client, journal, runner)
                yield Context((first, second), journal, options, runner, progress)
        finally:
            for client in clients:
                runner.run(client.close())


def settings_of(
    addresses: tuple[Address, Address],
    models: tuple[str, str],
    options: CommonOptions,
    suites: Sequence[Suite] = (),
) -> dict[str, Any]:
    """The settings that a resumed run must share, as JSON.

    Options of suites have keys such as `latency.rounds`. All built-in suites are included, so that
    a resumed run may choose other suites.
    """
    settings = _as_json(options)
    configured: Mapping[str, Suite] = {**SUITES, **{suite.name: suite for suite in suites}}
    for name, suite in configured.items():
        # The point keeps an option of a suite apart from a common one of the same name.
        settings |= {f"{name}.{key}": value for key, value in _as_json(suite.options).items()}
    for side, address, model in zip(("original", "pruned"), addresses, models, strict=True):
        settings[side] = address.name or clean_url(f"--{side}", address.url)
        settings[f"{side}_model"] = model
        settings |= {f"{side}_{key}": value for key, value in address.extras.settings.items()}
    return settings


def _as_json(options: Any) -> dict[str, Any]:
    values: dict[str, Any] = TypeAdapter(type(options)).dump_python(options, mode="json")
    return values


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
