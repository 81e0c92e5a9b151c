"""Examples against no server, or one that cannot do it: one line and exit code 1."""

import json
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

pytestmark = pytest.mark.slow

EXAMPLES = Path(__file__).parents[1] / "examples"
ANSWER = {"index": 0, "message": {"role": "assistant", "content": "x"}, "finish_reason": "stop"}
COMPLETION = {"id": "1", "object": "chat.completion", "created": 0, "model": "m"}
MODELS = {
    "object": "list",
    "data": [{"id": "m", "object": "model", "created": 0, "owned_by": "me"}],
}


class _Plain(BaseHTTPRequestHandler):
    """A server of the API that knows nothing of kprune."""

    def do_GET(self) -> None:
        self._answer(MODELS)

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self._answer({**COMPLETION, "choices": [ANSWER]})

    def log_message(self, format: str, *args: object) -> None:
        pass

    def _answer(self, value: object) -> None:
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def plain_server() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Plain) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/v1"
        server.shutdown()
        thread.join()


@pytest.fixture
def no_server() -> str:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Plain) as server:
        port = server.server_port
    return f"http://127.0.0.1:{port}/v1"


def failure(name: str, url: str) -> str:
    """What an example says on standard error when it fails."""
    command = [sys.executable, EXAMPLES / name, url]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 1, ended.stderr
    (line,) = ended.stderr.strip().splitlines()
    return line


@pytest.mark.parametrize("name", ["guard.py", "input_pruning.py", "thinking.py"])
def test_where_no_server_is_the_example_says_so(name: str, no_server: str) -> None:
    pytest.importorskip("openai")
    assert failure(name, no_server).startswith(f"no server answers at {no_server}: vllm serve")


def test_a_server_without_a_pruner_is_named(plain_server: str) -> None:
    pytest.importorskip("openai")
    assert "prunes no prompts: start it with" in failure("input_pruning.py", plain_server)
