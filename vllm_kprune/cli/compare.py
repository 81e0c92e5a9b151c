"""`kprune compare`: two endpoints, the same work, and whether the pruned one is worth shipping."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import typer
from rich.markup import escape

from vllm_kprune.cli.compare_options import (
    AccuracyDataOption,
    BatchOption,
    BenchmarkOption,
    CometOption,
    ConcurrencyOption,
    FailOnOption,
    FreshOption,
    InputDataOption,
    JsonReportOption,
    KeepOption,
    LanguageOption,
    LatencyTokensOption,
    LimitOption,
    MaxTokensOption,
    MoreConditions,
    OriginalFolderOption,
    OriginalModelOption,
    OriginalOption,
    OutputOption,
    PrunedFolderOption,
    PrunedModelOption,
    PrunedOption,
    RoundsOption,
    SamplesOption,
    SeedOption,
    SuiteOption,
    TasksOption,
    TimeoutOption,
    TranslationOption,
)
from vllm_kprune.cli.compare_table import print_report
from vllm_kprune.cli.console import counts, error_console, log, output_console, write_json
from vllm_kprune.compare.conclude import SAME_ENDPOINT, conclude, write_all
from vllm_kprune.compare.endpoint.messages import same_endpoint, shared_key
from vllm_kprune.compare.gate import Gate, check_gates, failed_gates, parse_gates
from vllm_kprune.compare.journal import set_aside
from vllm_kprune.compare.open_run import Address, open_run
from vllm_kprune.compare.report.document import Report
from vllm_kprune.compare.run import CompareOptions, Suite, run_suites
from vllm_kprune.compare.suites import SUITES
from vllm_kprune.compare.suites.data_files import check_data
from vllm_kprune.errors import KPruneError, nearest
from vllm_kprune.profile import LANGUAGES, nearest_language

__all__ = ["register"]

_EPILOG = """
**Examples**

Everything, with kprune's own prompts and texts (`vllm serve` on two ports):

`kprune compare --original http://localhost:8000 --pruned http://localhost:8001 -o report`

A first look in minutes:

`kprune compare --original URL --pruned URL --suite stability --suite latency --limit 40`

A gate in CI: fail if the data show that Korean got less stable, or cannot show that decoding is at
least 1.2 times as fast:

`kprune compare --original URL --pruned URL --fail-on "stability<0" "decode_ratio<1.2?"`

Two models of a hosted API:

`OPENAI_API_KEY=… kprune compare --original https://HOST/v1 --original-model BIG
--pruned https://HOST/v1 --pruned-model SMALL --suite stability`

**Keys** come from KPRUNE_ORIGINAL_API_KEY and KPRUNE_PRUNED_API_KEY, else OPENAI_API_KEY.

**Exit codes**: 0 done, 1 a --fail-on condition is met, 2 a mistake that you can put right or
nothing could be measured, 3 a server died, or has no such model or no credit any more: what was
done is in the report, and the same command goes on from there; it also asks again what failed. 130
Ctrl-C: the same, without a report.
"""
_DEFAULTS = CompareOptions()
_INCOMPLETE, _STOPPED = 3, 130


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("compare", epilog=_EPILOG)(_run)


def _list_suites(wanted: bool) -> None:
    if wanted:
        for suite in SUITES.values():
            output_console.print(f"[bold]{suite.name:<12}[/] {escape(suite.help)}", soft_wrap=True)
        raise typer.Exit


def _run(
    original: OriginalOption,
    pruned: PrunedOption,
    original_model: OriginalModelOption = None,
    pruned_model: PrunedModelOption = None,
    original_folder: OriginalFolderOption = None,
    pruned_folder: PrunedFolderOption = None,
    concurrency: ConcurrencyOption = _DEFAULTS.concurrency,
    timeout: TimeoutOption = 300.0,
    suite: SuiteOption = None,
    limit: LimitOption = None,
    language: LanguageOption = None,
    max_tokens: MaxTokensOption = _DEFAULTS.max_tokens,
    samples: SamplesOption = _DEFAULTS.samples,
    batch: BatchOption = None,
    rounds: RoundsOption = _DEFAULTS.latency_rounds,
    latency_tokens: LatencyTokensOption = _DEFAULTS.latency_tokens,
    tasks: TasksOption = None,
    keep: KeepOption = None,
    comet: CometOption = None,
    seed: SeedOption = _DEFAULTS.seed,
    benchmark: BenchmarkOption = None,
    translation: TranslationOption = None,
    accuracy_data: AccuracyDataOption = None,
    input_data: InputDataOption = None,
    output: OutputOption = Path("kprune-compare"),
    fresh: FreshOption = False,
    fail_on: FailOnOption = None,
    more_conditions: MoreConditions = None,
    json_to: JsonReportOption = None,
    list_suites: bool = typer.Option(
        False,
        "--list",
        is_eager=True,
        callback=_list_suites,
        help="Tell the suites and exit.",
        rich_help_panel="What is measured",
    ),
) -> None:
    """Compare two endpoints: is the pruned model better, equal or worse, and how sure is that?

    Sends the same work to both, in turns, and judges the answers: language confusion, translation,
    accuracy, exactness, latency, memory, input pruning. Writes a report with intervals and both
    answers side by side. Any OpenAI-compatible server will do; what one cannot do (chat,
    log-probabilities, token counts) is reported as not measured.
    """
    suites = _chosen(suite)
    if more_conditions and not fail_on:
        raise KPruneError(f"unexpected {more_conditions[0]!r}: conditions follow --fail-on")
    gates = parse_gates([*(fail_on or []), *(more_conditions or [])])
    # Where any name may be a metric's, a bare name must not be taken for one.
    check_gates(gates, {one.name: None if "*" in one.metrics else one.metrics for one in suites})
    options = CompareOptions(
        limit=limit,
        seed=seed,
        concurrency=concurrency,
        languages=_languages(language),
        max_tokens=max_tokens,
        samples=samples,
        benchmark=benchmark,
        translations=tuple(translation or ()),
        accuracy=tuple(name for text in tasks or () for name in text.split(",")),
        accuracy_data=accuracy_data,
        batches=tuple(batch or _DEFAULTS.batches),
        keep_rates=tuple(keep or _DEFAULTS.keep_rates),
        input_data=input_data,
        latency_rounds=rounds,
        latency_tokens=latency_tokens,
        comet_model=comet,
        original_folder=original_folder,
        pruned_folder=pruned_folder,
    )
    check_data(options, [one.name for one in suites])
    if fresh and (moved := set_aside(output)):
        log(f"the run before is in {moved}")
    addresses = Address(original, original_model), Address(pruned, pruned_model)
    if warning := shared_key(original, pruned):
        log(f"warning: {warning}")
    with (
        _told(output),
        counts() as tell,
        open_run(
            *addresses, options, output, gated=bool(gates), timeout=timeout, tell=tell
        ) as context,
    ):
        if same_endpoint(*context.endpoints):
            log(f"warning: {SAME_ENDPOINT}")
        outcome = run_suites(context, suites)
        report = conclude(context, outcome.results)
    _show(report, output, json_to)
    _end(report, gates, outcome.died, output)


@contextmanager
def _told(folder: Path) -> Iterator[None]:
    """What Ctrl-C leaves behind."""
    try:
        yield
    except KeyboardInterrupt:
        log(f"stopped; what was done is kept in {folder}, and the same command goes on")
        raise typer.Exit(_STOPPED) from None


def _chosen(names: Sequence[str] | None) -> list[Suite]:
    wanted = [name for text in names or () for name in text.split(",")]
    for name in wanted:
        if name not in SUITES:
            raise KPruneError(f"--suite: unknown suite {name!r}; {nearest(name, SUITES)}")
    return [suite for suite in SUITES.values() if not wanted or suite.name in wanted]


def _languages(codes: Sequence[str] | None) -> tuple[str, ...]:
    wanted = [code.strip().lower() for text in codes or () for code in text.split(",")]
    for code in wanted:
        if code not in LANGUAGES:
            raise KPruneError(f"--language: unknown code {code!r}; {nearest_language(code)}")
    return tuple(dict.fromkeys(wanted)) or _DEFAULTS.languages


def _show(report: Report, folder: Path, json_to: str | None) -> None:
    figures, page = write_all(report, folder)
    if json_to:
        write_json(report.model_dump(mode="json"), json_to)
    print_report(report, error_console if json_to == "-" else output_console)
    log(f"report: {page} (figures: {figures})")


def _end(report: Report, gates: Sequence[Gate], died: str | None, folder: Path) -> None:
    failures = failed_gates(gates, report)
    for failure in failures:
        error_console.print(f"[bold red]failed:[/] {escape(str(failure))}", soft_wrap=True)
    if died:
        log(f"incomplete: {died}")
        log(f"what was done is kept in {folder}; start the server, then the same command goes on")
        raise typer.Exit(_INCOMPLETE)
    if failures:
        raise typer.Exit(1)
    if not any(suite.metrics for suite in report.suites):
        raise KPruneError(f"nothing could be measured: {_reasons(report)}")
    if gates:
        log(f"gate: passed; of {len(gates)} --fail-on condition(s) none is met")


def _reasons(report: Report) -> str:
    """The first reason of every suite."""
    found = ((one.name, next(iter(one.unavailable.values()), "")) for one in report.suites)
    return "; ".join(f"{name}: {why or 'it gave no figures'}" for name, why in found)
