"""Runs small jobs in forks of a process that has imported vLLM, the slowest part of each.

`ask` starts such a script for a test, with the jobs in a file; the script calls `run_forked` and
`tell`. Two jobs run at once: starting an engine is mostly Python, which keeps one CPU busy.
"""

import json
import os
import subprocess
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from support.child import script_environment
from support.tiny_models import ENVIRONMENT

AT_ONCE = 2
_MARK = "ANSWERS "


def ask(script: str, jobs: Sequence[Any], folder: Path) -> list[Any]:
    """The answers of a script beside this file to these jobs; the file is written into `folder`."""
    (folder / "jobs.json").write_text(json.dumps(jobs))
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name(script), folder / "jobs.json"],
        env={**script_environment(), **ENVIRONMENT},
        capture_output=True,
        text=True,
        timeout=800,
        check=False,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith(_MARK)]
    assert lines, done.stdout[-3000:] + done.stderr[-3000:]
    answers: list[Any] = json.loads(lines[-1].removeprefix(_MARK))
    return answers


def tell(answers: Sequence[Any]) -> None:
    """Send the answers from the script to the test."""
    sys.stdout.write(_MARK + json.dumps(answers) + "\n")


@dataclass
class Ended:
    """A fork that has ended: what its function returned (or None), its status and its output."""

    result: Any
    status: int
    text: str


def run_forked(run: Callable[[Any], Any], jobs: Sequence[Any]) -> list[Ended]:
    """Call `run` with each job in a fork of its own; what it returns must fit into JSON."""
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
