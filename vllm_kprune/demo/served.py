"""Compare two servers that were started for it: `kprune demo` and the paper's experiment.

Unlike in a run of `kprune compare`, each suite has its own amounts. The servers have names instead
of addresses, because they listen on other ports after a restart.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from vllm_kprune.compare.conclude import conclude
from vllm_kprune.compare.connect import Address, connect, settings_of
from vllm_kprune.compare.journal import Journal
from vllm_kprune.compare.measurements import SuiteResult
from vllm_kprune.compare.options import CommonOptions
from vllm_kprune.compare.report.document import Report
from vllm_kprune.compare.run import Amount, Context, Suite, SuiteProgress, run_suites
from vllm_kprune.compare.suites import SUITES
from vllm_kprune.demo.pairs import NAMES, Servers
from vllm_kprune.errors import KPruneError

__all__ = ["Amounts", "amounts_of", "check_kept", "compare_served"]

# By name of a suite: options that differ from the rest, those of the suite and common ones.
Amounts = Mapping[str, Mapping[str, Any]]
_NAMED = tuple(f"http://{name}/v1" for name in NAMES)


def check_kept(options: CommonOptions, amounts: Amounts, folder: Path) -> None:
    """Raise a `KPruneError` if `compare_served` would refuse the contents of `folder`.

    This needs no servers, so it can be called before they start. The servers must answer under
    `NAMES`, as those of `serve_pair` do.
    """
    # `name` takes the place of the URL in the settings, so no server is needed.
    addresses = Address("", name=_NAMED[0]), Address("", name=_NAMED[1])
    with Journal(folder, settings_of(addresses, NAMES, options, list(_suites(amounts)))):
        pass


def compare_served(
    servers: Servers,
    amounts: Amounts,
    options: CommonOptions,
    folder: Path,
    *,
    timeout: float = 300.0,
    progress: SuiteProgress = lambda suite, done, total: None,
) -> Report:
    """Run the suites that `amounts` names, in its order, and keep the answers in `folder`.

    Raises:
        KPruneError: a server died. The answers are kept, and another call resumes.
    """
    original, pruned = (
        Address(server.base_url, model=name, name=named)
        for server, name, named in zip(servers, NAMES, _NAMED, strict=True)
    )
    suites = list(_suites(amounts))
    with connect(
        original, pruned, options, folder, suites=suites, timeout=timeout, progress=progress
    ) as context:
        results = [_run(context, suite, amounts[suite.name]) for suite in suites]
        report = conclude(context, results)
    return report.model_copy(update={"settings": _settings(report.settings, amounts)})


def _settings(common: Mapping[str, Any], amounts: Amounts) -> dict[str, Any]:
    """The settings with those of each suite in place of the common ones, which did not hold."""
    own = {
        f"{suite}.{name}": json.loads(json.dumps(value, default=str))
        for suite, amount in amounts.items()
        for name, value in amount.items()
    }
    replaced = {name for amount in amounts.values() for name in _common(amount)}
    return {name: value for name, value in common.items() if name not in replaced} | own


def amounts_of(amounts: Amounts, options: CommonOptions) -> Iterator[tuple[str, Amount]]:
    """The name of each suite that says in advance how much it asks, and that amount."""
    for suite in _suites(amounts):
        own = replace(options, **_common(amounts[suite.name]))
        if (amount := suite.amount(own)) and amount.requests:
            yield suite.name, amount


def _common(amount: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in amount.items() if key in _COMMON}


def _suites(amounts: Amounts) -> Iterator[Suite]:
    for name, amount in amounts.items():
        suite = SUITES[name]
        own = {key: value for key, value in amount.items() if key not in _COMMON}
        yield suite.configured(replace(suite.options, **own))


_COMMON = {field.name for field in fields(CommonOptions)}


def _run(context: Context, suite: Suite, amount: Mapping[str, Any]) -> SuiteResult:
    # Shares the clients, the journal and the list of dead endpoints.
    of_suite = replace(context, options=replace(context.options, **_common(amount)))
    outcome = run_suites(of_suite, [suite])
    if outcome.died:
        raise KPruneError(f"{outcome.died}; the answers are kept, and the same command resumes")
    # More items than these few are the business of `kprune compare`.
    return replace(outcome.results[0], more="kprune compare")
