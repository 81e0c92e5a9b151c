"""The end of a run: build its report, including how the endpoints describe themselves.

Names come from users and servers (models, addresses, files with tasks). A name that is too long for
a report is shortened here, in such a way that it stays unique.
"""

import hashlib
import importlib.metadata
import platform
from collections.abc import Iterator, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path

from pydantic import JsonValue, ValidationError

from vllm_kprune.compare.endpoint.description import checked_description
from vllm_kprune.compare.endpoint.messages import same_endpoint
from vllm_kprune.compare.margins import Margin, with_margins
from vllm_kprune.compare.measurements import Measurement, SuiteResult
from vllm_kprune.compare.report.build import build_report
from vllm_kprune.compare.report.document import EndpointReport, Report
from vllm_kprune.compare.report.page import write_page
from vllm_kprune.compare.report.report_file import write_report
from vllm_kprune.compare.run import Context
from vllm_kprune.compare.settings import side_keys
from vllm_kprune.compare.suites import SUITES
from vllm_kprune.errors import KPruneError

__all__ = ["SAME_ENDPOINT", "conclude", "write_all"]

SAME_ENDPOINT = "both sides are the same endpoint: an A/A run, which cannot show a difference"

# Packages whose version can change a result.
_PACKAGES = ("httpx", "lm_eval", "numpy", "py3langid", "sacrebleu", "unbabel-comet", "wordfreq")

# The bounds of a report. Titles are shorter because they are also parts of sentences.
_NAME, _TITLE, _MOST_NOTES, _MOST_REASONS = 200, 100, 199, 500


def conclude(
    context: Context, results: Sequence[SuiteResult], margins: Sequence[Margin] = ()
) -> Report:
    """The report of a run; it depends only on the answers, not on when the run was resumed."""
    named = [_with_more(context, _with_main(result)) for result in results]
    judging: dict[str, JsonValue] = {"margins": [one.text for one in margins]} if margins else {}
    try:
        return build_report(
            [_within_bounds(result) for result in with_margins(named, margins)],
            endpoints=[_endpoint(context, at) for at in range(len(context.clients))],
            settings={**context.journal.settings, **judging},
            versions=dict(_versions()),
            seed=context.options.seed,
            date=str(context.journal.get("endpoints", "date") or ""),
            incomplete=context.dead_endpoints[0] if context.dead_endpoints else None,
        )
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise KPruneError(
            f"the results do not fit into a report: {place}: {first['msg']}; the answers are kept "
            f"in {context.journal.folder}; measure less with --suite or --tasks"
        ) from None


def _with_main(result: SuiteResult) -> SuiteResult:
    """The result with the name of its main metric: the first one that the suite declares.

    It is named even if it was not measured, so that no other metric takes its place.
    """
    if result.main or result.suite not in SUITES:
        return result
    pattern = SUITES[result.suite].metrics[0]
    names = [*(one.metric.name for one in result.measurements), *result.unavailable]
    # For a pattern such as `chrf_*`, the first metric that matches stands for the suite.
    # `decode_ratio*` means `decode_ratio`, which exists by itself.
    plain = pattern.rstrip("*@_")
    matching = (name for name in names if fnmatchcase(name, pattern))
    return replace(result, main=plain if plain in names else next(matching, plain))


def _with_more(context: Context, result: SuiteResult) -> SuiteResult:
    """The result with the option that gives its suite more items."""
    suite = SUITES.get(result.suite)
    if result.more or not suite or not suite.more:
        return result
    limited = context.options.limit is not None
    return replace(result, more="a higher --limit" if limited else suite.more)


def write_all(report: Report, folder: Path) -> tuple[Path, Path]:
    """Write `report.json` and then `report.html`, which shows the same report."""
    paths = folder / "report.json", folder / "report.html"
    write_report(report, paths[0])
    write_page(report, paths[1])
    return paths


def _endpoint(context: Context, at: int) -> EndpointReport:
    endpoint, others = (
        context.endpoints[at],
        context.endpoints[1:] if at == 0 else context.endpoints[:1],
    )
    described = context.journal.get("endpoints", f"description of {endpoint.name}")
    alike = any(same_endpoint(endpoint, other) for other in others)
    same = {"warning": SAME_ENDPOINT} if alike else {}
    return EndpointReport(
        name=endpoint.name,
        # As in the settings: servers that the caller starts have another port each time.
        url=_short(str(context.journal.settings[side_keys(at + 1)[at]]), _NAME),
        model=_short(endpoint.model, _NAME),
        description=same | checked_description(described),
    )


def _within_bounds(result: SuiteResult) -> SuiteResult:
    """A suite's result with names and lists as short as a report allows."""
    reasons = {_short(name, _NAME): why for name, why in result.unavailable.items()}
    # One place is left for the line that counts the rest: a report has at most 200 notes.
    notes = result.notes[:_MOST_NOTES]
    if len(result.notes) > len(notes):
        notes = (*notes, f"and {len(result.notes) - len(notes):,} more notes")
    return replace(
        result,
        measurements=tuple(map(_named, result.measurements)),
        unavailable=dict([*reasons.items()][:_MOST_REASONS]),
        notes=notes,
        main=result.main and _short(result.main, _NAME),
    )


def _named(measurement: Measurement) -> Measurement:
    metric = measurement.metric
    name, title = _short(metric.name, _NAME), _short(metric.title, _TITLE)
    return replace(measurement, metric=replace(metric, name=name, title=title))


def _short(name: str, most: int) -> str:
    """The name, or its beginning and a digest of the full name."""
    if len(name) <= most:
        return name
    # 10 characters: the ellipsis, a space, and 8 digits of the digest.
    return f"{name[: most - 10]}… {hashlib.sha256(name.encode()).hexdigest()[:8]}"


def _versions() -> Iterator[tuple[str, str]]:
    yield "python", platform.python_version()
    for name in _PACKAGES:
        try:
            yield name, importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
