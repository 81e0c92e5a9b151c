"""How `kprune compare` ends: stopped, incomplete, with a gate that failed or passed; exit codes."""

import signal
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer
from rich.markup import escape

from vllm_kprune.cli.console import error_console, log
from vllm_kprune.compare.gate import GateResult, worse_metrics
from vllm_kprune.compare.report.document import Report
from vllm_kprune.errors import KPruneError

__all__ = ["end", "resumable"]

_INCOMPLETE, _STOPPED, _TERMINATED = 3, 130, 143


@contextmanager
def resumable(folder: Path) -> Iterator[None]:
    """On Ctrl-C or SIGTERM, say what is kept and how to resume."""
    terminated = False

    def interrupt(*_: object) -> None:
        nonlocal terminated
        terminated = True
        # asyncio ends a run in good order on this signal, and on no other.
        signal.raise_signal(signal.SIGINT)

    handlers: dict[int, Callable[..., Any]] = {
        signal.SIGTERM: interrupt,
        signal.SIGINT: signal.default_int_handler,
    }
    # A shell lets what it starts in the background ignore SIGINT, and asyncio would ignore it too.
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        del handlers[signal.SIGINT]
    before = {}
    if _in_main_thread():
        before = {number: signal.signal(number, how) for number, how in handlers.items()}
    try:
        yield
    except KeyboardInterrupt:
        log(f"stopped; the answers are kept in {folder}, and the same command resumes")
        raise typer.Exit(_TERMINATED if terminated else _STOPPED) from None
    except (KPruneError, BrokenPipeError):
        raise
    # A traceback would end with the code 1 of a gate that failed.
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        raise KPruneError(
            f"this is a bug of kprune, please report it: {type(error).__name__}: {error} "
            f"({Path(place.filename).name}, line {place.lineno}); the answers are kept in {folder}"
        ) from error
    finally:
        for number, how in before.items():
            signal.signal(number, how)


def _in_main_thread() -> bool:
    """Whether signals can be handled here."""
    return threading.current_thread() is threading.main_thread()


def end(report: Report, gates: Sequence[GateResult], folder: Path) -> None:
    """Say what came of each condition, and exit with the code that fits."""
    failures = [one for one in gates if one.failed]
    for one in gates:
        name = "[bold red]failed:[/]" if one.failed else "gate:"
        error_console.print(f"{name} {escape(str(one))}", soft_wrap=True)
    # This code wins over 1: the gates were judged on a part of the data only.
    if report.incomplete:
        log(f"incomplete: {report.incomplete}")
        log(f"the answers are kept in {folder}; once that is mended, the same command resumes")
        raise typer.Exit(_INCOMPLETE)
    if failures:
        raise typer.Exit(1)
    if not any(suite.metrics for suite in report.suites):
        raise KPruneError(f"nothing could be measured: {_reasons(report)}")
    if gates:
        _say_passed(len(gates), worse_metrics(report.suites))


def _say_passed(conditions: int, worse: Sequence[str]) -> None:
    """A gate that passes beside a verdict of "worse" says so, as it was asked for other things."""
    for one in worse:
        error_console.print(f"[bold red]WARNING: worse:[/] {escape(one)}", soft_wrap=True)
    but = f", but {len(worse)} metric(s) are WORSE; --fail-on worse fails on them" if worse else ""
    log(f"gate: passed; none of {conditions} --fail-on condition(s) is met{but}")


def _reasons(report: Report) -> str:
    """The first reason of every suite."""
    found = ((one.name, next(iter(one.unavailable.values()), "")) for one in report.suites)
    return "; ".join(f"{name}: {why or 'it returned no results'}" for name, why in found)
