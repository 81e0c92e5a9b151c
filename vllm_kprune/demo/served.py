"""Compare two servers that were started for it: `kprune demo` and the paper's experiment.

Unlike a run of `kprune compare`, each suite has its own amounts, and servers have names for an
address: after a restart they listen on other ports.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from vllm_kprune.compare.conclude import conclude
from vllm_kprune.compare.journal import Journal
from vllm_kprune.compare.measurements import SuiteResult
from vllm_kprune.compare.open_run import Address, open_run, settings_of
from vllm_kprune.compare.report.document import Report
from vllm_kprune.compare.run import CompareOptions, Context, run_suites
from vllm_kprune.compare.suites import SUITES
from vllm_kprune.demo.pairs import NAMES, Servers
from vllm_kprune.errors import KPruneError

__all__ = ["Amounts", "check_kept", "compare_served"]

# Fields of `CompareOptions` that a suite has otherwise than the rest, by its name.
Amounts = Mapping[str, Mapping[str, Any]]
_NAMED = tuple(f"http://{name}/v1" for name in NAMES)
Tell = Callable[[str, int, int], None]


def check_kept(options: CompareOptions, folder: Path) -> None:
    """A `KPruneError` if `compare_served` would refuse what `folder` holds: before servers start.

    The servers must answer under `NAMES`, as those of `serve_pair` do.
    """
    addresses = Address("", name=_NAMED[0]), Address("", name=_NAMED[1])
    with Journal(folder, settings_of(addresses, NAMES, options)):
        pass


def compare_served(
    servers: Servers,
    amounts: Amounts,
    options: CompareOptions,
    folder: Path,
    *,
    timeout: float = 300.0,
    tell: Tell = lambda suite, done, total: None,
) -> Report:
    """Run the suites that `amounts` names, in its order; answers are kept in `folder`.

    Raises:
        KPruneError: a server died. What was done is kept, and a further call goes on from there.
    """
    original, pruned = (
        Address(server.base_url, model=name, name=named)
        for server, name, named in zip(servers, NAMES, _NAMED, strict=True)
    )
    with open_run(original, pruned, options, folder, timeout=timeout, tell=tell) as context:
        results = [_run(context, name, amount) for name, amount in amounts.items()]
        report = conclude(context, results)
    told = {suite: dict(amount) for suite, amount in amounts.items()}
    return report.model_copy(update={"settings": {**report.settings, "amounts": told}})


def _run(context: Context, name: str, amount: Mapping[str, Any]) -> SuiteResult:
    own = replace(context, options=replace(context.options, **amount))
    outcome = run_suites(own, [SUITES[name]])
    if outcome.died:
        raise KPruneError(f"{outcome.died}; what was done is kept, and the same command goes on")
    return outcome.results[0]
