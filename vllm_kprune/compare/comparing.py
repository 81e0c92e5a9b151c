"""Compare two endpoints from start to end: what `kprune compare` does, for Python."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from vllm_kprune.compare.conclude import SAME_ENDPOINT, conclude, write_all
from vllm_kprune.compare.connect import Address, connect
from vllm_kprune.compare.endpoint.extras import NO_EXTRAS, Extras
from vllm_kprune.compare.endpoint.messages import same_endpoint, shared_key
from vllm_kprune.compare.options import CommonOptions
from vllm_kprune.compare.report.document import Report
from vllm_kprune.compare.run import Suite, SuiteProgress, run_suites
from vllm_kprune.compare.suites import SUITES
from vllm_kprune.errors import KPruneError, nearest
from vllm_kprune.options import check_values, options_of

__all__ = ["chosen_suites", "compare_endpoints"]

OptionsT = TypeVar("OptionsT")


def compare_endpoints(
    original_url: str,
    pruned_url: str,
    *,
    output: str | Path,
    suites: Iterable[str | Suite] | None = None,
    options: CommonOptions | None = None,
    original_model: str | None = None,
    pruned_model: str | None = None,
    original_extras: Extras = NO_EXTRAS,
    pruned_extras: Extras = NO_EXTRAS,
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

    `original_extras` and `pruned_extras` are added to every request of a side: fields of the body,
    headers and a query.

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
    for suite in chosen:
        suite.check(options)
        for caution in suite.cautions(options):
            warn(f"{suite.name}: {caution.removeprefix('WARNING: ')}")
    if warning := shared_key(original_url, pruned_url):
        warn(warning)
    with connect(
        Address(original_url, original_model, extras=original_extras),
        Address(pruned_url, pruned_model, extras=pruned_extras),
        options,
        output,
        # Also suites that are not run now: their options are part of the settings of the run.
        suites=list({**configured, **{suite.name: suite for suite in chosen}}.values()),
        gated=gated,
        timeout=timeout,
        progress=progress,
    ) as context:
        if same_endpoint(*context.endpoints):
            warn(SAME_ENDPOINT)
        report = conclude(context, run_suites(context, chosen).results)
    write_all(report, output)
    return report


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
