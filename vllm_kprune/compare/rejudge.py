"""Judge the answers of an earlier run again, without servers: `kprune compare --rejudge FOLDER`.

Everything that was asked is kept (`journal.py`), so other margins, other conditions or a newer
version of kprune need no servers. The suites run as they did, and find their answers in the
journal. What is not there, such as the prompts of a newer version, counts as a failed answer. If
nothing has changed, the report is the same, byte for byte.

Two things are looked up again on this machine: the folders of the models (`exactness`) and the
files of the user (`--benchmark`, `--translation`, ...).
"""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vllm_kprune.compare.conclude import conclude
from vllm_kprune.compare.conditions import check_margins
from vllm_kprune.compare.connect import ask_alike
from vllm_kprune.compare.endpoint.client import Client
from vllm_kprune.compare.endpoint.messages import Abilities, Answer, Endpoint, Request
from vllm_kprune.compare.journal import Journal, kept_settings
from vllm_kprune.compare.margins import Margin
from vllm_kprune.compare.report.document import Report
from vllm_kprune.compare.report.report_file import read_report
from vllm_kprune.compare.run import Context, Suite, SuiteProgress, run_suites
from vllm_kprune.compare.settings import endpoints_of, options_in, suites_in
from vllm_kprune.compare.suites import SUITES
from vllm_kprune.errors import KPruneError

__all__ = ["SUITES_OF_RUN", "rejudge"]

SUITES_OF_RUN = "suites"  # the journal's key
_NOT_KEPT = "not among the saved answers"


class _Recorded(Client):
    """A side that answers nothing new."""

    def __init__(self, endpoint: Endpoint, missing: Mapping[str, str]) -> None:
        super().__init__(endpoint)
        self.abilities = Abilities(missing)

    async def ask(self, request: Request) -> Answer:
        return Answer(error=_NOT_KEPT)

    async def get(self, path: str) -> Any:
        return None

    def again(self, *, concurrency: int) -> Client:
        return self


def rejudge(
    folder: str | Path,
    *,
    suites: Iterable[str] | None = None,
    margins: Sequence[Margin] = (),
    configured: Mapping[str, Suite] = SUITES,
    progress: SuiteProgress = lambda suite, done, total: None,
) -> Report:
    """The report of the answers that `compare_endpoints` kept in `folder`.

    `suites` are names of those to judge; None means those of the last run. `configured` are the
    suites that exist. Nothing is written: `write_all` does that.

    Raises:
        KPruneError: the folder has no answers, or none of a wanted suite.
    """
    folder = Path(folder)
    settings = kept_settings(folder)
    options, known = options_in(settings), suites_in(settings, configured)
    with Journal(folder, settings) as journal, asyncio.Runner() as runner:
        clients = [_client(endpoint, journal) for endpoint in endpoints_of(settings)]
        ask_alike(clients)
        context = Context(
            tuple(clients), journal, options, runner, progress=progress, recorded=True
        )
        try:
            chosen = _chosen(suites, known, journal)
            check_margins(margins, chosen)
            results = run_suites(context, chosen).results
        finally:
            for client in clients:
                runner.run(client.close())
        context.dead_endpoints.extend(_why_incomplete(folder))
        return conclude(context, results, margins)


def _client(endpoint: Endpoint, journal: Journal) -> Client:
    missing = journal.get("endpoints", f"missing of {endpoint.name}")
    if not isinstance(missing, dict):
        raise KPruneError(
            f"{journal.folder} has no answers of the {endpoint.name} endpoint: the run was stopped "
            "before it began"
        )
    return _Recorded(endpoint, {str(name): str(why) for name, why in missing.items()})


def _chosen(
    wanted: Iterable[str] | None, known: Sequence[Suite], journal: Journal
) -> Sequence[Suite]:
    """The wanted suites, in the order of the run."""
    ran = [str(name) for name in journal.get("endpoints", SUITES_OF_RUN) or ()]
    for name in wanted or ():
        if name not in ran:
            raise KPruneError(
                f"--suite {name}: this run did not ask it; it has {', '.join(ran) or 'no suite'}"
            )
    by_name = {suite.name: suite for suite in known}
    names = [name for name in ran if name in by_name and (not wanted or name in list(wanted))]
    if not names:
        raise KPruneError(f"{journal.folder} has no suite whose answers could be judged again")
    return [by_name[name] for name in names]


def _why_incomplete(folder: Path) -> list[str]:
    """Why the run ended early, if its report says so."""
    path = folder / "report.json"
    incomplete = read_report(path).incomplete if path.is_file() else None
    return [incomplete] if incomplete else []
