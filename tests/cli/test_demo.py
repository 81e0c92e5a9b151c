"""`kprune demo`: its output and its errors, and that it leaves no server behind."""

import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner

from vllm_kprune.cli.app import app
from vllm_kprune.cli.demo_table import print_summary
from vllm_kprune.compare.measurements import Measurement, Metric, SuiteResult
from vllm_kprune.compare.report.build import build_report
from vllm_kprune.compare.report.document import Report
from vllm_kprune.compare.suites.server_memory import tree_memory
from vllm_kprune.demo.run import Sizes, unexplained

pytestmark = pytest.mark.slow

SIZES = Sizes((262_145, 113_696), (268_000_000, 173_000_000), (27.4, 25.0), 1.55)


def report(unexplained: int, *, judged: bool = False) -> Report:
    """Of 8 answers, so many differ without a reason; `judged` against the original, which has none
    such, as where the models' folders are known."""
    better = "lower" if judged else "neither"
    metric = Metric("unexplained", "answers that differ [why?]", "share", better, 0.0)
    values = np.array([[1.0]] * unexplained + [[0.0]] * (8 - unexplained))
    sides = (np.zeros_like(values), values) if judged else (values, None)
    measured = Measurement(metric, tuple("abcdefgh"), *sides)
    results = [SuiteResult("exactness", (measured,))]
    return build_report(results, endpoints=[], settings={}, versions={}, seed=0, resamples=100)


@pytest.mark.parametrize(
    "figure",
    ["gemma[3]", "enko", "113,696", "268.0 M", "65%", "25 s", "x 1.55", "Some CPU, 2 cores"],
)
def test_the_summary_shows_every_figure(figure: str) -> None:
    console = Console(file=io.StringIO(), width=100)
    print_summary(report(0), SIZES, ("gemma[3]", "enko"), "Some CPU, 2 cores", console)
    assert isinstance(console.file, io.StringIO)
    assert figure in console.file.getvalue()


@pytest.mark.parametrize("judged", [False, True])
@pytest.mark.parametrize("count", [0, 1, 8])
def test_an_answer_that_differs_without_a_reason_is_seen(count: int, judged: bool) -> None:
    assert unexplained(report(count, judged=judged)) is (count > 0)


@pytest.mark.parametrize("arguments", [["no/such/folder"], ["--profile", "enk"]])
def test_a_mistake_is_told_before_anything_is_started(arguments: list[str]) -> None:
    outcome = CliRunner().invoke(app, ["demo", *arguments])
    assert outcome.exception is not None
    assert "does not exist" in str(outcome.exception) or "enko" in str(outcome.exception)


def test_memory_is_that_of_a_process_and_its_children() -> None:
    code = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'input()'])"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, start_new_session=True
    ) as process:
        deadline = time.monotonic() + 10
        while (memory := tree_memory(process.pid)).processes < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        assert process.stdin is not None
        process.stdin.close()
    assert memory.processes == 2
    assert memory.bytes > 2_000_000


# The stand-in answers /health and writes its pid; two of them are a pair of servers.
_STAND_IN = """
import http.server, os, pathlib, sys
pathlib.Path(sys.argv[0] + "." + str(os.getpid())).touch()
class Health(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
if sys.argv[2].endswith("broken"):
    sys.exit("OSError: [Errno 98] Address already in use")
http.server.HTTPServer(("127.0.0.1", int(sys.argv[-1])), Health).serve_forever()
"""
# SIGINT is set because a shell that runs the tests in the background lets them ignore it.
_PROGRAM = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)
from pathlib import Path
from types import SimpleNamespace as Value
from vllm_kprune.errors import KPruneError
from vllm_kprune.demo import pairs
from vllm_kprune.demo import servers
from vllm_kprune.cli.console import say_error
from vllm_kprune.signals import ended_by_signals
servers._vllm_command = lambda: [sys.executable, {stand_in!r}]
pair = Value(base=Value(folder=Path("base")), overlay=Path({overlay!r}))
try:
    with ended_by_signals(), pairs.serve_pair(pair, []):
        print("ready", flush=True)
        time.sleep(600)
except KPruneError as error:
    say_error(str(error))
    sys.exit(2)
"""


def start_pair(folder: Path, overlay: str) -> "subprocess.Popen[str]":
    (folder / "stand_in.py").write_text(_STAND_IN)
    code = _PROGRAM.format(stand_in=str(folder / "stand_in.py"), overlay=overlay)
    return subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def running(folder: Path) -> list[int]:
    """Stand-in servers that still run."""
    pids = [int(path.suffix[1:]) for path in folder.glob("stand_in.py.*")]
    assert pids
    return [pid for pid in pids if Path(f"/proc/{pid}").exists()]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_both_servers_are_stopped_when_the_demo_is(tmp_path: Path, number: signal.Signals) -> None:
    with start_pair(tmp_path, "overlay") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        assert len(running(tmp_path)) == 2
        os.kill(process.pid, number)
        try:
            process.communicate(timeout=30)
        finally:
            process.kill()
    assert process.returncode != 0
    assert running(tmp_path) == []


def test_a_server_that_dies_is_one_line_with_its_cause_and_its_log(tmp_path: Path) -> None:
    with start_pair(tmp_path, "broken") as process:
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 2
    assert len(errors.strip().splitlines()) == 1
    assert "stopped with exit code 1 (OSError: [Errno 98] Address already in use)" in errors
    assert Path(errors.strip().rpartition("its log is ")[2]).is_file()
    assert running(tmp_path) == []
