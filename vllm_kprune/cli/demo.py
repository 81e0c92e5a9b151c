"""`kprune demo`: one model served both whole and pruned, side by side, and compared."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Event

import typer
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from vllm_kprune.cli.compare_table import print_brief, print_report
from vllm_kprune.cli.console import counts, error_console, log, output_console, steps, write_json
from vllm_kprune.cli.demo_table import hardware, print_summary
from vllm_kprune.cli.options import JsonOptions
from vllm_kprune.cli.typer_options import with_options
from vllm_kprune.compare.conclude import write_all
from vllm_kprune.compare.report.document import Report
from vllm_kprune.compare.suites.prompts import SAMPLE_PROMPTS
from vllm_kprune.demo.pairs import NAMES, ModelPair, Servers, serve_pair
from vllm_kprune.demo.run import (
    ARGUMENTS,
    Sizes,
    compare_demo,
    prepare,
    resolution,
    sizes,
    stream,
    unexplained,
)
from vllm_kprune.options import option
from vllm_kprune.profile import load_profile

__all__ = ["register"]

_SAMPLE_TOKENS = 32
_EAGER_START = "about a minute"
_COMPILED_START = "one to three minutes, as vLLM compiles both; --eager skips that"


@dataclass(frozen=True, kw_only=True)
class _Demo:
    model: str | None = option(
        None,
        "Folder of a model, or its id on the hub.",
        default_text="a small reference model",
        positional=True,
    )
    profile: str = option("enko", "Profile by name, or a .yaml file.")
    rounds: int = option(12, "Rounds of the speed measurement.", least=1)
    eager: bool = option(
        False, "Do not compile: starts sooner, but hides a part of the speed gain."
    )
    keep: bool = option(False, "Keep both servers running afterwards, until Ctrl-C.")
    verbose: bool = option(False, "Show all that the comparison found.", flags=("--verbose", "-v"))
    output: Path = option(
        Path("kprune-demo"), "Folder for report.json and report.html.", flags=("--output", "-o")
    )


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("demo")(with_options(_run, _Demo, JsonOptions))


def _run(demo: _Demo, outcome: JsonOptions) -> None:
    """Serve a model both whole and pruned, side by side, and compare them.

    Starts two vLLM servers on free ports, runs a few small suites of `kprune compare` on both in
    Korean and English, prints the results and which answers differ and why, writes the report, and
    stops the servers. The reference model is downloaded if it is missing. vLLM's default settings
    compile the model; --eager starts sooner, but hides a part of the gain. The exit code is 1 if an
    answer differs without a reason.
    """
    wanted, machine = load_profile(demo.profile), hardware()
    with steps() as progress:
        pair = prepare(demo.model, wanted, log=log, progress=progress)
    log(f"starting both servers ({_EAGER_START if demo.eager else _COMPILED_START})")
    with serve_pair(pair, ARGUMENTS, eager=demo.eager) as servers:
        _show_samples(servers)
        for line in resolution(demo.rounds):
            log(line)
        with counts() as progress:
            report = compare_demo(servers, demo.rounds, progress)
        found = sizes(pair, servers)
        _show(report, pair, found, machine, demo, outcome.json_to)
        if demo.keep:
            _stay(servers)
    if unexplained(report):
        raise typer.Exit(1)


def _show(
    report: Report, pair: ModelPair, found: Sizes, machine: str, demo: _Demo, json_to: str | None
) -> None:
    console = error_console if json_to == "-" else output_console
    names = pair.name, pair.manifest.profile.name
    print_summary(report, found, names, machine, console)
    (print_report if demo.verbose else print_brief)(report, console)
    _, page = write_all(report, demo.output)
    log(f"report: {page}")
    if json_to:
        about = {"model": names[0], "profile": names[1], "hardware": machine, **asdict(found)}
        write_json({"demo": about, **report.model_dump(mode="json")}, json_to)


def _show_samples(servers: Servers) -> None:
    for prompt in SAMPLE_PROMPTS:
        texts = [prompt, prompt]
        with Live(console=error_console, refresh_per_second=12, transient=True) as live:
            # Defaults bind this round's values: a closure would see those of a later round.
            def follow(side: int, live: Live = live, texts: list[str] = texts) -> None:
                for text in stream(servers[side], NAMES[side], texts[side], _SAMPLE_TOKENS):
                    texts[side] += text
                    live.update(_side_by_side(texts))

            _at_once(follow)
        error_console.print(_side_by_side(texts))


def _at_once(follow: Callable[[int], None]) -> None:
    """Follow both sides at the same time.

    Ctrl-C leaves at once; the threads end when the servers stop.
    """
    # No `with`: it would wait for both answers, also after Ctrl-C.
    threads = ThreadPoolExecutor(2)
    try:
        answers = [threads.submit(follow, side) for side in (0, 1)]
        wait(answers)
        for answer in answers:
            answer.result()
    finally:
        threads.shutdown(wait=False, cancel_futures=True)


def _side_by_side(texts: list[str]) -> Table:
    table = Table(expand=True)
    for name in ("original", "pruned"):
        table.add_column(name, ratio=1, overflow="fold")
    table.add_row(*map(escape, texts))
    return table


def _stay(servers: Servers) -> None:
    for server, name in zip(servers, NAMES, strict=True):
        error_console.print(f"{server.base_url}  model {name}", markup=False)
    error_console.print("both servers are still running; Ctrl-C stops them")
    Event().wait()
