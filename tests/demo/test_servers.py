"""`VllmServer` with a stand-in for the `vllm` command: starting, failing, always stopping."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from urllib.request import urlopen

import pytest

from vllm_kprune.demo import servers
from vllm_kprune.demo.servers import VllmServer, free_port, log_tail
from vllm_kprune.errors import KPruneError

# Answers /health like vLLM; `stubborn` ignores SIGTERM, `child` has a process of its own.
_STAND_IN = """
import http.server, pathlib, signal, subprocess, sys
model, port = sys.argv[2], int(sys.argv[-1])
if model == "broken":
    sys.exit("cannot read the model\\nbecause it is broken")
if model == "stubborn":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
pathlib.Path(sys.argv[3]).write_text(str(child.pid))
class Health(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/health" and model != "slow" else 503)
        self.end_headers()
http.server.HTTPServer(("127.0.0.1", port), Health).serve_forever()
"""


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Replaces the `vllm` command; returns the file that gets the pid of the server's child."""
    script = tmp_path / "stand_in.py"
    script.write_text(_STAND_IN)
    monkeypatch.setattr(servers, "_vllm_command", lambda: [sys.executable, str(script)])
    return tmp_path / "child.pid"


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1][0]
    except FileNotFoundError:
        return False
    return state != "Z"


def has_stopped(pid: int) -> bool:
    deadline = time.monotonic() + 10
    while is_running(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not is_running(pid)


def test_a_server_answers_inside_the_block_and_is_gone_after_it(stand_in: Path) -> None:
    with VllmServer("model", [str(stand_in)]) as server:
        pid, log = server.pid, server.log
        with urlopen(f"{server.url}/health") as response:
            assert response.status == 200
        assert server.ready_seconds > 0
    assert has_stopped(pid)
    assert has_stopped(int(stand_in.read_text()))
    assert not log.exists()


def test_an_error_in_the_block_stops_the_server_and_keeps_its_log(
    stand_in: Path, tmp_path: Path
) -> None:
    log = tmp_path / "server.log"
    with pytest.raises(KeyboardInterrupt), VllmServer("m", [str(stand_in)], log=log) as server:
        pid = server.pid
        raise KeyboardInterrupt
    assert has_stopped(pid)
    assert log.exists()


def test_a_server_that_ends_while_starting_is_reported_with_the_end_of_its_log(
    stand_in: Path,
) -> None:
    server = VllmServer("broken", [str(stand_in)])
    with pytest.raises(KPruneError, match=r"(?s)exit code 1.*because it is broken"), server:
        pass
    server.log.unlink()


@pytest.mark.slow
def test_a_server_that_is_not_ready_in_time_is_stopped_and_reported(
    stand_in: Path, tmp_path: Path
) -> None:
    server = VllmServer("slow", [str(stand_in)], timeout=2, log=tmp_path / "log")
    with pytest.raises(KPruneError, match="not ready after 2 s"), server:
        pass
    assert has_stopped(int(stand_in.read_text()))


def test_a_server_that_ignores_sigterm_is_killed(
    stand_in: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(servers.stop_group, "__defaults__", (0.5,))
    with VllmServer("stubborn", [str(stand_in)]) as server:
        pid = server.pid
    assert has_stopped(pid)


def test_sigterm_to_the_program_stops_its_servers(stand_in: Path, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(f"""
import sys, time
from vllm_kprune.demo import servers
from vllm_kprune.signals import ended_by_signals
servers._vllm_command = lambda: [sys.executable, {str(tmp_path / "stand_in.py")!r}]
with ended_by_signals(), servers.VllmServer("model", [{str(stand_in)!r}]) as server:
    print(server.pid, flush=True)
    time.sleep(600)
""")
    with subprocess.Popen([sys.executable, program], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        os.kill(process.pid, signal.SIGTERM)
        assert process.wait(30) == 128 + signal.SIGTERM
    assert has_stopped(pid)
    assert has_stopped(int(stand_in.read_text()))


def test_two_servers_do_not_get_the_same_port() -> None:
    assert free_port() != free_port()


def test_the_tail_of_a_log_is_its_last_lines(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("\n".join(str(i) for i in range(10_000)))
    assert log_tail(log, lines=3) == "9997\n9998\n9999"
