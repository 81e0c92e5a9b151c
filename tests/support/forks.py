"""Runs small jobs in forks of a process that has imported vLLM, the slowest part of each.

`ask` sends the jobs of a test to such a script, which calls `answer_jobs`. The script is started
by the first test that asks, and waits for the next one. Two jobs run at once: starting an engine is
mostly Python, which keeps one CPU busy.
"""

import atexit
import gc
import json
import os
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO, Any

from support.child import script_environment
from support.tiny_models import ENVIRONMENT

AT_ONCE = 2
_MARK = "ANSWERS "


def ask(script: str, jobs: Sequence[Any], folder: Path) -> list[Any]:
    """The answers of a script beside this file to these jobs; the file is written into `folder`."""
    (folder / "jobs.json").write_text(json.dumps(jobs))
    process, log = _started(script)
    assert process.stdin and process.stdout
    process.stdin.write(f"{folder / 'jobs.json'}\n")
    process.stdin.flush()
    line = next((line for line in process.stdout if line.startswith(_MARK)), None)
    if line is None:
        _started.cache_clear()
        log.seek(0)
        raise AssertionError(f"{script} ended:\n{log.read()[-6000:]}")
    answers: list[Any] = json.loads(line.removeprefix(_MARK))
    return answers


@cache
def _started(script: str) -> tuple["subprocess.Popen[str]", IO[str]]:
    """The process of a script, which ends with this one, and the file of its standard error."""
    log = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115
    process = subprocess.Popen(
        [sys.executable, Path(__file__).with_name(script)],
        env={**script_environment(), **ENVIRONMENT},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=log,
        text=True,
    )
    atexit.register(_stop, process, log)
    return process, log


def _stop(process: "subprocess.Popen[str]", log: IO[str]) -> None:
    process.communicate()  # closes its standard input, which ends it
    log.close()


def answer_jobs(run: Callable[[Any], Any], answer: Callable[["Ended"], Any]) -> None:
    """The script's part: run the jobs of each file that is named on standard input."""
    for line in sys.stdin:
        jobs = json.loads(Path(line.rstrip("\n")).read_text())
        answers = [answer(one) for one in run_forked(run, jobs)]
        sys.stdout.write(_MARK + json.dumps(answers) + "\n")
        sys.stdout.flush()


@dataclass
class Ended:
    """A fork that has ended: what its function returned (or None), its status and its output."""

    result: Any
    status: int
    text: str


def run_forked(run: Callable[[Any], Any], jobs: Sequence[Any]) -> list[Ended]:
    """Call `run` with each job in a fork of its own; what it returns must fit into JSON."""
    gc.freeze()  # vLLM collects garbage several times, in all objects of its imports: 0.3 s each
    running: dict[int, tuple[int, int, int]] = {}
    ended: dict[int, Ended] = {}

    def reap() -> None:
        pid, status = os.wait()
        at, result, output = running.pop(pid)
        found = _read(result)
        ended[at] = Ended(json.loads(found) if found else None, status, _read(output))

    for at, job in enumerate(jobs):
        if len(running) == AT_ONCE:
            reap()
        result, output = os.memfd_create("result"), os.memfd_create("output")
        sys.stdout.flush()
        if not (pid := os.fork()):
            _child(run, job, result, output)
        running[pid] = at, result, output
    while running:
        reap()
    return [ended[at] for at in range(len(jobs))]


def _child(run: Callable[[Any], Any], job: Any, result: int, output: int) -> None:
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)  # the next jobs are the parent's to read
    os.dup2(output, 1)
    os.dup2(output, 2)
    try:
        os.write(result, json.dumps(run(job)).encode())
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def _read(handle: int) -> str:
    with os.fdopen(handle, "rb") as file:
        file.seek(0)
        return file.read().decode("utf-8", errors="replace")
