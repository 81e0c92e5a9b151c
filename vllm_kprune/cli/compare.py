"""`kprune compare`: two endpoints, the same work, and whether the pruned one is worth shipping."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from vllm_kprune.cli.compare_ending import end, resumable
from vllm_kprune.cli.compare_extras import ExtraOptions
from vllm_kprune.cli.compare_table import print_brief, print_plan, print_report
from vllm_kprune.cli.console import counts, error_console, log, output_console, write_json
from vllm_kprune.cli.typer_options import with_options
from vllm_kprune.compare.ci_files import write_junit, write_summary
from vllm_kprune.compare.comparing import chosen_suites, compare_endpoints
from vllm_kprune.compare.connect import Address
from vllm_kprune.compare.gate import (
    Gate,
    check_gates,
    gate_results,
    parse_gates,
)
from vllm_kprune.compare.journal import set_aside
from vllm_kprune.compare.options import ENDPOINTS, MEASURED, CommonOptions
from vllm_kprune.compare.planning import plan
from vllm_kprune.compare.report.document import Report
from vllm_kprune.compare.suites import SUITES
from vllm_kprune.errors import KPruneError
from vllm_kprune.options import REQUIRED, option

__all__ = ["command", "register"]

_EPILOG = """
**Examples**

All suites, with kprune's own prompts and texts (`vllm serve` on two ports):

`kprune compare --original http://localhost:8000 --pruned http://localhost:8001 -o report`

A first look within minutes:

`kprune compare --original URL --pruned URL --suite stability --suite latency --limit 40`

A gate in CI: fail if anything is worse, or if the data do not show that decoding is at least 1.2
times as fast:

`kprune compare --original URL --pruned URL --fail-on worse "decode_ratio<1.2?"`

Two models of a hosted API:

`OPENAI_API_KEY=… kprune compare --original https://HOST/v1 --original-model BIG
--pruned https://HOST/v1 --pruned-model SMALL --suite stability`

One model with and without thinking:

`kprune compare --original URL --pruned URL
--pruned-extra-body '{"chat_template_kwargs": {"enable_thinking": false}}'`

**Keys** come from KPRUNE_ORIGINAL_API_KEY and KPRUNE_PRUNED_API_KEY, else OPENAI_API_KEY.

**Exit codes**: 0 success. 1 a --fail-on condition is met. 2 a mistake that you can correct, or
nothing could be measured. 3 a server died, or no longer has the model or any credit: the report has
the results until then, and the same command resumes and asks again for answers that failed. 130
Ctrl-C, 143 SIGTERM: the same, without a report.
"""
_REPORT = "Report"


@dataclass(frozen=True)
class _Endpoints:
    """Where both sides are found."""

    original: str = option(
        REQUIRED, "URL of the original model's server, with or without /v1.", group=ENDPOINTS
    )
    pruned: str = option(REQUIRED, "URL of the pruned model's server.", group=ENDPOINTS)
    original_model: str | None = option(
        None,
        "Name of the model on that server; by default the only one that is served.",
        group=ENDPOINTS,
    )
    pruned_model: str | None = option(
        None, "The same for the pruned model's server.", group=ENDPOINTS
    )
    timeout: float = option(300.0, "Seconds that one request may take.", least=1, group=ENDPOINTS)


@dataclass(frozen=True)
class _Selection:
    """Which suites run."""

    suites: tuple[str, ...] = option(
        (),
        "What to measure (all by default; see --list); repeat for several.",
        flags=("--suite", "-s"),
        commas=True,
        group=MEASURED,
    )


@dataclass(frozen=True)
class _Output:
    """Where the report goes, and when the command fails."""

    output: Path = option(
        Path("kprune-compare"),
        "Folder for the answers, report.json and report.html. If a run was interrupted, the same "
        "command resumes it.",
        flags=("--output", "-o"),
        group=_REPORT,
    )
    fresh: bool = option(
        False,
        "Start over; the contents of the folder are moved to FOLDER.1.",
        flags=("--fresh",),
        group=_REPORT,
    )
    plan: bool = option(
        False,
        "Only say what each suite would ask, about how long it would take, and which differences "
        "it could find; a few prompts measure the speed of both servers.",
        flags=("--plan",),
        group=_REPORT,
    )
    fail_on: tuple[str, ...] = option(
        (),
        'Exit with code 1 if the data show this: worse (any metric is worse), "stability<0" (the '
        'main metric of a suite, pruned - original), "decode_ratio<1.5?" (with ?: unless the data '
        "rule it out). Several may follow.",
        group=_REPORT,
    )
    junit: Path | None = option(
        None,
        "Also write the verdicts and conditions as JUnit XML to this file.",
        group=_REPORT,
    )
    summary_md: Path | None = option(
        None,
        'Also write a summary in Markdown to this file, such as "$GITHUB_STEP_SUMMARY".',
        group=_REPORT,
    )
    verbose: bool = option(
        False, "Print every metric and note.", flags=("--verbose", "-v"), group=_REPORT
    )
    json_to: str | None = option(
        None,
        "Also write the report as JSON to this file; - prints it.",
        flags=("--json",),
        group=_REPORT,
    )


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("compare", epilog=_EPILOG)(command())


def command() -> Callable[..., Any]:
    """The command as Typer takes it, with the options of every suite in the table."""
    tables = {name: type(suite.options) for name, suite in SUITES.items()}
    return with_options(
        _run, _Endpoints, ExtraOptions, _Selection, CommonOptions, *tables.values(), _Output
    )


def _list_suites(wanted: bool) -> None:
    if wanted:
        for suite in SUITES.values():
            output_console.print(f"[bold]{suite.name:<12}[/] {escape(suite.help)}", soft_wrap=True)
        raise typer.Exit


def _run(
    endpoints: _Endpoints,
    extras: ExtraOptions,
    selection: _Selection,
    common: CommonOptions,
    *of_suites_and_output: Any,
    # `--fail-on A B`: Typer's options take one value each, so further ones arrive as arguments.
    more_conditions: Annotated[list[str] | None, typer.Argument(hidden=True, metavar="")] = None,
    list_suites: bool = typer.Option(
        False,
        "--list",
        is_eager=True,
        callback=_list_suites,
        help="List the suites and exit.",
        rich_help_panel=MEASURED,
    ),
) -> None:
    """Compare two endpoints: is the pruned model better, equal or worse, and how certain is that?

    Sends the same work to both endpoints, alternately, and judges the answers: language confusion,
    translation, accuracy, exactness, latency, memory and input pruning. Writes a report with
    confidence intervals and both answers side by side. Any OpenAI-compatible server will do;
    metrics that an endpoint cannot provide (for lack of chat, log-probabilities or token counts)
    are reported as not measured, with the reason.
    """
    *of_suites, out = of_suites_and_output
    configured = {
        name: suite.configured(options)
        # `command` hands over the tables in the order of SUITES.
        for (name, suite), options in zip(SUITES.items(), of_suites, strict=True)
    }
    names = {suite.name for suite in chosen_suites(selection.suites or None, configured)}
    suites = [suite for suite in configured.values() if suite.name in names]
    gates = _gates(out.fail_on, more_conditions or ())
    original_extras, pruned_extras = extras.of_sides()
    # Where any name may be a metric's, a bare name must not be taken for one.
    check_gates(gates, {one.name: None if "*" in one.metrics else one.metrics for one in suites})
    for suite in suites:  # before anything is moved
        suite.check(common)
    if out.plan:
        addresses = (
            Address(endpoints.original, endpoints.original_model, extras=original_extras),
            Address(endpoints.pruned, endpoints.pruned_model, extras=pruned_extras),
        )
        print_plan(plan(*addresses, suites, common, timeout=endpoints.timeout), output_console)
        return
    if out.fresh and (moved := set_aside(out.output)):
        log(f"the previous run was moved to {moved}")
    with resumable(out.output), counts() as progress:
        report = compare_endpoints(
            endpoints.original,
            endpoints.pruned,
            output=out.output,
            suites=suites,
            options=common,
            original_model=endpoints.original_model,
            pruned_model=endpoints.pruned_model,
            original_extras=original_extras,
            pruned_extras=pruned_extras,
            timeout=endpoints.timeout,
            gated=bool(gates),
            configured=configured,
            progress=progress,
            warn=lambda warning: log(f"warning: {warning}"),
        )
    results = gate_results(gates, report, selection.suites)
    if out.junit:
        write_junit(report, results, out.junit)
    if out.summary_md:
        write_summary(report, results, out.summary_md)
    _show(report, out.output, out.json_to, verbose=out.verbose)
    end(report, results, out.output)


def _gates(conditions: Sequence[str], more: Sequence[str]) -> tuple[Gate, ...]:
    if more and not conditions:
        raise KPruneError(f"unexpected {more[0]!r}: conditions follow --fail-on")
    return parse_gates([*conditions, *more])


def _show(report: Report, folder: Path, json_to: str | None, *, verbose: bool) -> None:
    if json_to:
        write_json(report.model_dump(mode="json"), json_to)
    show = print_report if verbose else print_brief
    show(report, error_console if json_to == "-" else output_console)
    log(f"report: {folder / 'report.html'} (as JSON: {folder / 'report.json'})")
