"""`kprune compare`: two endpoints, the same work, and whether the pruned one is worth shipping."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from vllm_kprune.cli.compare_ending import end, resumable
from vllm_kprune.cli.compare_extras import ExtraOptions
from vllm_kprune.cli.compare_options import JudgeOptions, OutputOptions, SelectionOptions
from vllm_kprune.cli.compare_rejudge import given_flags, refuse_asking
from vllm_kprune.cli.compare_sides import EndpointOptions, sides_of
from vllm_kprune.cli.compare_table import print_brief, print_plan, print_report
from vllm_kprune.cli.console import counts, error_console, log, output_console, write_json
from vllm_kprune.cli.typer_options import with_options
from vllm_kprune.compare.ci_files import write_junit, write_summary
from vllm_kprune.compare.comparing import chosen_suites, compare_endpoints
from vllm_kprune.compare.conclude import write_all
from vllm_kprune.compare.conditions import Gate, check_gates, parse_gates
from vllm_kprune.compare.gate import gate_results
from vllm_kprune.compare.journal import set_aside
from vllm_kprune.compare.margins import Margin, parse_margins
from vllm_kprune.compare.options import MEASURED, CommonOptions
from vllm_kprune.compare.planning import plan
from vllm_kprune.compare.rejudge import rejudge
from vllm_kprune.compare.report.document import Report
from vllm_kprune.compare.suites import SUITES
from vllm_kprune.errors import KPruneError

__all__ = ["command", "register"]

_FOLDER = Path("kprune-compare")
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

Two profiles against one original, which is asked once:

`kprune compare --original URL --pruned enko@URL --pruned ko@URL`

Other margins or conditions for a run that is done, without servers:

`kprune compare --rejudge report --margin stability=0.03 --fail-on worse`

**Keys** come from KPRUNE_ORIGINAL_API_KEY and KPRUNE_PRUNED_API_KEY, else OPENAI_API_KEY.

**Exit codes**: 0 success. 1 a --fail-on condition is met. 2 a mistake that you can correct, or
nothing could be measured. 3 a server died, or no longer has the model or any credit: the report has
the results until then, and the same command resumes and asks again for answers that failed. 130
Ctrl-C, 143 SIGTERM: the same, without a report.
"""


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("compare", epilog=_EPILOG)(command())


def command() -> Callable[..., Any]:
    """The command as Typer takes it, with the options of every suite in the table."""
    tables = {name: type(suite.options) for name, suite in SUITES.items()}
    return with_options(
        _run,
        EndpointOptions,
        ExtraOptions,
        SelectionOptions,
        CommonOptions,
        *tables.values(),
        JudgeOptions,
        OutputOptions,
    )


def _list_suites(wanted: bool) -> None:
    if wanted:
        for suite in SUITES.values():
            output_console.print(f"[bold]{suite.name:<12}[/] {escape(suite.help)}", soft_wrap=True)
        raise typer.Exit


def _run(
    endpoints: EndpointOptions,
    extras: ExtraOptions,
    selection: SelectionOptions,
    common: CommonOptions,
    *of_suites_and_report: Any,
    context: typer.Context,
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
    *of_suites, judged, out = of_suites_and_report
    configured = {
        name: suite.configured(options)
        # `command` hands over the tables in the order of SUITES.
        for (name, suite), options in zip(SUITES.items(), of_suites, strict=True)
    }
    gates = _gates(judged.fail_on, more_conditions or ())
    margins = parse_margins(judged.margins)
    if judged.rejudge:
        refuse_asking(given_flags(context))
        _finish(*_judged_again(judged.rejudge, selection, margins, out), gates, selection, out)
        return
    sides = sides_of(endpoints, extras)
    if sides.more and common.pruned_folder:
        raise KPruneError(
            "--pruned-folder is about one pruned side, and there are several; serve their models "
            "from this machine, and their folders are known"
        )
    names = {suite.name for suite in chosen_suites(selection.suites or None, configured)}
    suites = [suite for suite in configured.values() if suite.name in names]
    # Where any name may be a metric's, a bare name must not be taken for one.
    known = {one.name: None if "*" in one.metrics else one.metrics for one in suites}
    check_gates(gates, known, sides.names)
    for suite in suites:  # before anything is moved
        suite.check(common)
    if out.plan:
        planned = plan(
            sides.original,
            sides.pruned,
            suites,
            common,
            more=sides.more,
            timeout=endpoints.timeout,
        )
        print_plan(planned, output_console)
        return
    folder = out.output or _FOLDER
    if out.fresh and (moved := set_aside(folder)):
        log(f"the previous run was moved to {moved}")
    with resumable(folder), counts() as progress:
        report = compare_endpoints(
            sides.original,
            sides.pruned,
            output=folder,
            suites=suites,
            options=common,
            more=sides.more,
            margins=margins,
            timeout=endpoints.timeout,
            gated=bool(gates),
            configured=configured,
            progress=progress,
            warn=lambda warning: log(f"warning: {warning}"),
        )
    _finish(report, folder, gates, selection, out)


def _judged_again(
    folder: Path, selection: SelectionOptions, margins: Sequence[Margin], out: OutputOptions
) -> tuple[Report, Path]:
    """The report on an earlier run's answers, and the folder to which it was written."""
    to = out.output or folder
    with resumable(to), counts() as progress:
        report = rejudge(
            folder, suites=selection.suites or None, margins=margins, progress=progress
        )
        write_all(report, to)
    return report, to


def _finish(
    report: Report,
    folder: Path,
    gates: Sequence[Gate],
    selection: SelectionOptions,
    out: OutputOptions,
) -> None:
    """Check the conditions, show the report, and exit with the code that fits."""
    results = gate_results(gates, report, selection.suites)
    if out.junit:
        write_junit(report, results, out.junit)
    if out.summary_md:
        write_summary(report, results, out.summary_md)
    _show(report, folder, out.json_to, verbose=out.verbose)
    end(report, results, folder)


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
