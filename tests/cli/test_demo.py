"""What `kprune demo` prints and writes, its mistakes, and that it leaves no server behind."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from vllm_kprune.cli.app import app
from vllm_kprune.cli.demo_table import demo_table, difference_lines
from vllm_kprune.evaluate.answers import AnswerPair, Difference
from vllm_kprune.evaluate.decode_speed import Round, SpeedComparison
from vllm_kprune.evaluate.demo_result import DemoResult, ServedModel, as_json
from vllm_kprune.evaluate.server_memory import ServerMemory, server_memory
from vllm_kprune.evaluate.sizes import ModelSize


def served(tokens: int, weight_bytes: int, memory: int, load_seconds: float | None) -> ServedModel:
    size = ModelSize(tokens, tokens, weight_bytes // 2, weight_bytes, weight_bytes)
    return ServedModel(size, weight_bytes, 27.4, load_seconds, ServerMemory(memory, "PSS", 3))


RESULT = DemoResult(
    model="gemma[3]",
    profile="enko",
    hardware="Some CPU, 2 cores",
    load_average=0.25,
    original=served(262_145, 536_000_000, 5_000_000_000, 1.5),
    pruned=served(113_696, 346_000_000, 4_000_000_000, 1.0),
    predicted_ratio=1.55,
    speeds=(
        SpeedComparison(1, 32, (Round(20, 30), Round(18, 28.8), Round(22, 30.8))),
        SpeedComparison(8, 32, (Round(130, 182),)),
    ),
    answers=(
        AnswerPair("ko", "수도는", "서울", "서울", None),
        AnswerPair("en", "The", "a", "b", Difference("tie", 3, "'a' or 'b'", 0.125)),
        AnswerPair("en", "It", "東", "b", Difference("pruned token", 0, "'東' (Han)", 1.0)),
    ),
)


def printed(result: DemoResult) -> str:
    console = Console(file=io.StringIO(), width=100)
    console.print(demo_table(result))
    for line in difference_lines(result):
        console.print(line, soft_wrap=True)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.mark.parametrize(
    "figure",
    [
        "gemma[3]",
        "113,696",
        "268.0 M",
        "346 MB",
        "4,000 MB",
        "1.5 s",
        "x 1.50 (1.40 - 1.60)",
        "182.0 tok/s",
        "x 1.55 at batch 1",
        "1 of 3",
        "load 0.2 before",
        "“The”, token 4: 'a' or 'b', top-2 gap 0.1250",
        "'東' (Han)",
    ],
)
def test_the_table_shows_every_figure(figure: str) -> None:
    assert figure in printed(RESULT)


def test_the_json_holds_all_figures_and_those_derived_from_them() -> None:
    found = json.loads(json.dumps(as_json(RESULT)))
    assert found["original"]["size"]["tokens"] == 262_145
    assert found["pruned"]["memory"] == {"bytes": 4_000_000_000, "kind": "PSS", "processes": 3}
    assert found["speeds"][0]["ratio"] == 1.5
    assert found["speeds"][0]["ratio_range"] == pytest.approx([1.4, 1.6])
    assert found["speeds"][0]["of_predicted"] == pytest.approx(1.5 / 1.55)
    assert found["speeds"][1]["of_predicted"] is None
    assert len(found["speeds"][0]["rounds"]) == 3
    assert found["identical_answers"] == 1
    assert found["different_answers"] == {"tie": 1, "pruned token": 1}
    assert found["answers"][2]["difference"]["detail"] == "'東' (Han)"


@pytest.mark.parametrize("arguments", [["no/such/folder"], ["--profile", "enk"]])
def test_a_mistake_is_told_before_anything_is_started(arguments: list[str]) -> None:
    outcome = CliRunner().invoke(app, ["demo", *arguments])
    assert outcome.exception is not None
    assert "does not exist" in str(outcome.exception) or "enko" in str(outcome.exception)


def test_memory_is_that_of_the_whole_process_group() -> None:
    code = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'input()'])"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, start_new_session=True
    ) as process:
        deadline = time.monotonic() + 10
        while (memory := server_memory(process.pid)).processes < 2 and time.monotonic() < deadline:
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
from vllm_kprune.evaluate import pairs, servers
from vllm_kprune.cli.console import say_error
servers._vllm_command = lambda: [sys.executable, {stand_in!r}]
pair = Value(base=Value(folder=Path("base")), overlay=Path({overlay!r}))
try:
    with servers.stops_on_sigterm(), pairs.serve_pair(pair, []):
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
