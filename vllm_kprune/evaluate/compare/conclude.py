"""The end of a run: its report, with what the endpoints told about themselves."""

import importlib.metadata
import platform
from collections.abc import Iterator, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path

from vllm_kprune.evaluate.compare.client import Client
from vllm_kprune.evaluate.compare.facts import kept_facts
from vllm_kprune.evaluate.compare.page import write_page
from vllm_kprune.evaluate.compare.report import EndpointFacts, Report, build_report
from vllm_kprune.evaluate.compare.report_file import write_report
from vllm_kprune.evaluate.compare.run import Context
from vllm_kprune.evaluate.compare.suites import SUITES
from vllm_kprune.evaluate.compare.values import SuiteResult

__all__ = ["conclude", "write_all"]

# Packages whose version can change a figure.
_PACKAGES = ("httpx", "lm_eval", "numpy", "py3langid", "sacrebleu", "unbabel-comet", "wordfreq")


def conclude(context: Context, results: Sequence[SuiteResult]) -> Report:
    """The report of a run: the same for the same answers, whenever and how often it was resumed."""
    return build_report(
        [_with_main(result) for result in results],
        endpoints=[_facts(context, client) for client in context.clients],
        settings=context.journal.settings,
        versions=dict(_versions()),
        seed=context.options.seed,
        incomplete=context.deaths[0] if context.deaths else None,
    )


def _with_main(result: SuiteResult) -> SuiteResult:
    """With the name of its main metric: the first that its suite declares, also if it is missing
    here, so that no other is taken for it."""
    if result.main or result.suite not in SUITES:
        return result
    pattern = SUITES[result.suite].metrics[0]
    names = [*(one.metric.name for one in result.measurements), *result.unavailable]
    plain = pattern.rstrip("*@_")
    matching = (name for name in names if fnmatchcase(name, pattern))
    return replace(result, main=plain if plain in names else next(matching, plain))


def write_all(report: Report, folder: Path) -> tuple[Path, Path]:
    """Write `report.json` and `report.html`; the figures first, as the page is made from them."""
    paths = folder / "report.json", folder / "report.html"
    write_report(report, paths[0])
    write_page(report, paths[1])
    return paths


def _facts(context: Context, client: Client) -> EndpointFacts:
    endpoint = client.endpoint
    return EndpointFacts(
        name=endpoint.name,
        url=str(context.journal.settings[endpoint.name]),
        model=endpoint.model,
        facts=kept_facts(context.journal, endpoint.name),
    )


def _versions() -> Iterator[tuple[str, str]]:
    yield "python", platform.python_version()
    for name in _PACKAGES:
        try:
            yield name, importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
