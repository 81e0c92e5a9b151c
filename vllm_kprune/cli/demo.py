"""`kprune demo`: one model served whole and pruned, side by side, with figures."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from threading import Event

import typer
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from vllm_kprune.cli.console import error_console, output_console, steps, write_json
from vllm_kprune.cli.demo_table import demo_table, difference_lines
from vllm_kprune.evaluate.demo import (
    DemoSettings,
    ServedPair,
    measure,
    prepare,
    serve_demo,
    stream,
)
from vllm_kprune.evaluate.demo_result import DemoResult, as_json
from vllm_kprune.evaluate.prompts import SAMPLE_PROMPTS
from vllm_kprune.evaluate.servers import stops_on_sigterm
from vllm_kprune.profile import load_profile

__all__ = ["register"]

_SAMPLE_TOKENS = 32
_EAGER_START = "about a minute"
_COMPILED_START = "one to three minutes, as vLLM compiles both; --eager does without"


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("demo")(_run)


def _run(
    model: str = typer.Argument(
        None, help="Folder of a model, or its id on the hub; a small reference model by default."
    ),
    profile: str = typer.Option("enko", "--profile", help="Profile by name, or a .yaml file."),
    rounds: int = typer.Option(9, "--rounds", min=1, help="Rounds of speed measurement."),
    eager: bool = typer.Option(
        False, "--eager", help="Do not compile: starts sooner, but hides a part of the speed gain."
    ),
    keep: bool = typer.Option(
        False, "--keep", help="Leave both servers running afterwards, until Ctrl-C."
    ),
    json_to: str = typer.Option(None, "--json", help="Write the figures as JSON; - prints them."),
) -> None:
    """Serve a model whole and pruned, side by side, and compare.

    Starts two vLLM servers on free ports, sends both the same Korean and English requests, prints
    size, memory, speed and which answers differ and why, and stops the servers. The reference model
    is downloaded when missing. Settings are vLLM's own, which compile the model; --eager starts
    sooner, but hides a part of the gain. Exit code 1 if an answer differs without a reason.
    """
    wanted = load_profile(profile)
    with stops_on_sigterm():
        with steps() as progress:
            pair = prepare(model, wanted, log=_log, progress=progress)
        _log(f"starting both servers ({_EAGER_START if eager else _COMPILED_START})")
        with serve_demo(pair, eager=eager) as served:
            _show_samples(served)
            with steps() as progress:
                result = measure(pair, served, DemoSettings(rounds=rounds), progress)
            _report(result, json_to)
            if keep:
                _stay(served)
    if "unexplained" in result.different:
        raise typer.Exit(1)


def _log(line: str) -> None:
    error_console.print(line, markup=False, soft_wrap=True)


def _report(result: DemoResult, json_to: str | None) -> None:
    if json_to:
        write_json(as_json(result), json_to)
    console = error_console if json_to == "-" else output_console
    console.print(demo_table(result))
    for line in difference_lines(result):
        console.print(f"  {line}", soft_wrap=True)


def _show_samples(served: ServedPair) -> None:
    for prompt in SAMPLE_PROMPTS:
        texts = [prompt, prompt]
        with Live(console=error_console, refresh_per_second=12, transient=True) as live:

            def follow(side: int, live: Live = live, texts: list[str] = texts) -> None:
                for piece in stream(served.targets[side], texts[side], _SAMPLE_TOKENS):
                    texts[side] += piece
                    live.update(_side_by_side(texts))

            _at_once(follow)
        error_console.print(_side_by_side(texts))


def _at_once(follow: Callable[[int], None]) -> None:
    """Both sides at the same time. Ctrl-C leaves at once; the servers' end ends the threads."""
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


def _stay(served: ServedPair) -> None:
    for server, target in zip(served.servers, served.targets, strict=True):
        error_console.print(f"{server.base_url}  model {target.model}", markup=False)
    error_console.print("both servers keep running; Ctrl-C stops them")
    Event().wait()
