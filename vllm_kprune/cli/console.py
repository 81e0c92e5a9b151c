"""Shared by all commands: the console on standard error, progress bars and JSON output."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread
from typing import Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from vllm_kprune import progress
from vllm_kprune.errors import KPruneError

__all__ = [
    "counts",
    "error_console",
    "estimated_steps",
    "log",
    "output_console",
    "say_error",
    "steps",
    "write_json",
]

error_console = Console(stderr=True, highlight=False)
_MOST_CHARACTERS = 4_000  # of a mistake: a path can have 200,000
_LINE_SECONDS = 30.0  # between lines of progress where there is no terminal
output_console = Console(highlight=False)


def say_error(message: str) -> None:
    """Print a mistake on standard error, in one line unless it quotes a server's log."""
    if len(message) > _MOST_CHARACTERS:
        message = f"{message[:_MOST_CHARACTERS]}…"
    # Names of files need not be UTF-8.
    message = message.encode(errors="backslashreplace").decode()
    error_console.print(f"[bold red]error:[/] {escape(message)}", soft_wrap=True)


def log(line: str) -> None:
    """Print a line on standard error, without markup."""
    error_console.print(line, markup=False, soft_wrap=True)


@contextmanager
def steps(*more: ProgressColumn) -> Iterator[progress.Progress]:
    """A progress bar for each step, from calls (step, share done); silent without a terminal."""
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(),
        *more,
    )
    silent = not error_console.is_terminal
    with Progress(*columns, console=error_console, transient=True, disable=silent) as bars:
        known: dict[str, Any] = {}

        def tell(step: str, share: float) -> None:
            if step not in known:
                # Steps come one after another, and not each reports its end.
                for task in known.values():
                    bars.update(task, completed=1.0)
                known[step] = bars.add_task(step, total=1.0)
            bars.update(known[step], completed=share)

        yield tell


@contextmanager
def estimated_steps() -> Iterator[progress.Progress]:
    """Like `steps`, for work that takes hours: with the time that is left, and without a terminal a
    line now and then."""
    if error_console.is_terminal:
        with steps(TimeRemainingColumn()) as tell:
            yield tell
        return
    step, began, told = "", 0.0, 0.0

    def tell_line(name: str, share: float) -> None:
        nonlocal step, began, told
        now = time.monotonic()
        if name != step:
            step, began, told = name, now, now
        if now - told >= _LINE_SECONDS and share > 0:
            told = now
            left = (now - began) * (1 - share) / share
            log(f"{name}: {share:.0%}, about {_duration(left)} left")

    yield tell_line


def _duration(seconds: float) -> str:
    """Hours and minutes, or seconds if it is less than two minutes.

    >>> _duration(4000)
    '1:07 h'
    """
    if seconds < 120:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours}:{minutes:02} h" if hours else f"{minutes} min"


@contextmanager
def counts() -> Iterator[Callable[[str, int, int], None]]:
    """A bar for each suite, told as (suite, done, total); where nobody watches, a line when one is
    done and now and then before, also while nothing arrives."""
    columns = (
        TextColumn("{task.description:<12}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    watched = error_console.is_terminal
    if not watched:
        with _count_lines() as tell_line:
            yield tell_line
        return
    with Progress(*columns, console=error_console) as bars:
        known: dict[str, Any] = {}

        def tell(suite: str, done: int, total: int) -> None:
            if suite not in known:
                known[suite] = bars.add_task(suite, total=total)
            bars.update(known[suite], completed=done, total=total)

        yield tell


@contextmanager
def _count_lines() -> Iterator[Callable[[str, int, int], None]]:
    """The same as lines of a log; a thread goes on telling while nothing arrives."""
    line, last, done_all = "", "", True
    told = moved = time.monotonic()
    ended = Event()

    def tell(suite: str, done: int, total: int) -> None:
        nonlocal line, last, done_all, told, moved
        moved = time.monotonic()
        line, done_all = f"{suite}: {done:,} of {total:,}", done == total
        # A last count may be told twice; it is one line in a log.
        if (done_all or moved - told >= _LINE_SECONDS) and line != last:
            log(line)
            last, told = line, moved

    def go_on() -> None:
        nonlocal told
        while not ended.wait(_LINE_SECONDS / 10):
            now = time.monotonic()
            if line and not done_all and now - max(told, moved) >= _LINE_SECONDS:
                log(f"{line}, waiting for {_duration(now - moved)}")
                told = now

    Thread(target=go_on, daemon=True).start()
    try:
        yield tell
    finally:
        ended.set()


def write_json(value: Any, target: str) -> None:
    """Write a value as JSON to a file, or to standard output for `-`."""
    text = json.dumps(value, ensure_ascii=False, indent=2)
    if target == "-":
        # Not the console: rich would wrap lines and read brackets as markup.
        typer.echo(text)
        return
    try:
        Path(target).write_text(text + "\n", encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise KPruneError(f"{target} cannot be written: {error.strerror}") from None
