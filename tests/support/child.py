"""Runs what needs a gigabyte in a process of its own, which gives the memory back when it ends.

The test process would keep it: allocators reuse memory, but seldom return it to the system.
"""

import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TypeVar

_Result = TypeVar("_Result")


def in_child(function: Callable[..., _Result], *arguments: object) -> _Result:
    """Call a function of a test module in a new process; what it raises is raised here.

    The process is not a fork: PyTorch's threads do not survive one.
    """
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as pool:
        return pool.submit(function, *arguments).result()


def run_script(script: str, *arguments: object, environment: dict[str, str] | None = None) -> str:
    """Run a script beside this file; gives what it wrote to standard output.

    `environment` is by default the one in which it can import `support`.
    """
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name(script), *map(str, arguments)],
        env=environment or script_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def script_environment() -> dict[str, str]:
    """The environment of a script beside this file, which imports `support` as tests do."""
    folders = [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, folders))}
