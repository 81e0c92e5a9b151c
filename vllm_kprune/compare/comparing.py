"""Compare two endpoints from start to end: what `kprune compare` does, for Python."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from vllm_kprune.compare.conclude import SAME_ENDPOINT, conclude, write_all
from vllm_kprune.compare.conditions import check_margins
from vllm_kprune.compare.connect import Address, connect
from vllm_kprune.compare.endpoint.messages import same_endpoint, shared_key
from vllm_kprune.compare.journal import Journal
from vllm_kprune.compare.margins import Margin
from vllm_kprune.compare.options import CommonOptions
from vllm_kprune.compare.rejudge import SUITES_OF_RUN
from vllm_kprune.compare.report.document import Report
from vllm_kprune.compare.run import Suite, SuiteProgress, run_suites
from vllm_kprune.compare.settings import side_keys
from vllm_kprune.compare.suites import SUITES
from vllm_kprune.errors import KPruneError, nearest
from vllm_kprune.options import check_values, options_of

__all__ = ["chosen_suites", "compare_endpoints"]

OptionsT = TypeVar("OptionsT")


def compare_endpoints(
    original: str | Address,
    pruned: str | Address,
    *,
    output: str | Path,
    suites: Iterable[str | Suite] | None = None,
    options: CommonOptions | None = None,
    more: Sequence[str | Address] = (),
    margins: Sequence[Margin] = (),
    timeout: float = 300.0,
    gated: bool = False,
    configured: Mapping[str, Suite] = SUITES,
    progress: SuiteProgress = lambda suite, done, total: None,
    warn: Callable[[str], None] = lambda warning: None,
) -> Report:
    """Send the same work to two OpenAI-compatible endpoints, and compare their answers.

    >>> report = compare_endpoints(original, pruned, suites=["exactness"], output=output)
    >>> [suite.name for suite in report.suites]
    ['exactness']

    `suites` are names, or suites with options of their own such as
    `Latency(Latency.Options(rounds=5))`; None runs all. A name stands for the suite in
    `configured`. All answers and the report (`report.json`, `report.html`) are written to the
    folder `output`; calling this again with the same arguments resumes an interrupted run.
    API keys come from `KPRUNE_ORIGINAL_API_KEY` and `KPRUNE_PRUNED_API_KEY`, else from
    `OPENAI_API_KEY`.

    A side is a URL, or an `Address` with a model's name, and with extras that are added to every
    request: fields of the body, headers and a query. `more` are further pruned sides: the original
    is asked once, and each suite of the report stands for one pair, with a name such as
    `stability@pruned2`. `margins` replace those of metrics (`parse_margins`).

    `timeout` limits each request, in seconds. With `gated`, both sides must be different
    endpoints. If a server dies, the report has what was measured until then, and its field
    `incomplete` says why.

    Raises:
        KPruneError: an option or a data file is invalid, an endpoint does not answer, or `output`
            holds a run with other settings.
    """
    options, output = _checked(options or CommonOptions()), Path(output)
    chosen = [
        suite.configured(_checked(suite.options, f"{suite.name}."))
        for suite in chosen_suites(suites, configured)
    ]
    # All of them before `connect`, which makes the folder and sends the first requests.
    check_margins(margins, chosen)
    for suite in chosen:
        suite.check(options)
        for caution in suite.cautions(options):
            warn(f"{suite.name}: {caution.removeprefix('WARNING: ')}")
    first, *others = (
        Address(one) if isinstance(one, str) else one for one in (original, pruned, *more)
    )
    for other, key in zip(others, side_keys(1 + len(others))[1:], strict=True):
        if warning := shared_key(first.url, other.url, name=other.side or key):
            warn(warning)
    with connect(
        first,
        others[0],
        options,
        output,
        more=others[1:],
        # Also suites that are not run now: their options are part of the settings of the run.
        suites=list({**configured, **{suite.name: suite for suite in chosen}}.values()),
        gated=gated,
        timeout=timeout,
        progress=progress,
    ) as context:
        one, *pruned_ones = context.endpoints
        if any(same_endpoint(one, other) for other in pruned_ones):
            warn(SAME_ENDPOINT)
        _keep_names(context.journal, chosen)
        report = conclude(context, run_suites(context, chosen).results, margins)
    write_all(report, output)
    return report


def _keep_names(journal: Journal, suites: Sequence[Suite]) -> None:
    names = [suite.name for suite in suites]
    if names != journal.get("endpoints", SUITES_OF_RUN):
        journal.put("endpoints", SUITES_OF_RUN, names)


def chosen_suites(
    wanted: Iterable[str | Suite] | None, configured: Mapping[str, Suite] = SUITES
) -> Sequence[Suite]:
    """The suites to run: the wanted ones, or all; names are looked up in `configured`."""
    if wanted is None:
        return list(configured.values())
    found = []
    for one in wanted:
        if isinstance(one, str) and one not in configured:
            raise KPruneError(f"--suite: unknown suite {one!r}; {nearest(one, configured)}")
        found.append(configured[one] if isinstance(one, str) else one)
    return found


def _checked(options: OptionsT, prefix: str = "") -> OptionsT:
    """The options with checked values, since a Python caller may pass anything."""
    kind: type = type(options)
    table = options_of(kind)
    given = {one.name: getattr(options, one.name) for one in table}
    checked = check_values(table, given, prefix=prefix)
    return replace(options, **checked) if checked else options  # type: ignore[type-var]
