"""The one fake endpoint of the tests, with planted flaws or scripted answers.

`MockEndpoint` is a real HTTP server on a free port, for everything that depends on the wire.
`MockClient` is the same endpoint without a network, for suites: it answers as the server would
(`Habits`), or as a function of the test says. `comparing` and `compared` run suites with such
clients.
"""

import asyncio
import hashlib
import json
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from support.mock_answers import Habits, chunks_of, reply
from vllm_kprune.compare.endpoint.messages import Abilities, Answer, Endpoint, Request
from vllm_kprune.compare.endpoint.request_body import body_of
from vllm_kprune.compare.endpoint.wire import read_answer
from vllm_kprune.compare.journal import Journal
from vllm_kprune.compare.measurements import SuiteResult
from vllm_kprune.compare.options import CommonOptions
from vllm_kprune.compare.run import Context, Suite

Reply = Callable[[Request], Answer]


class MockEndpoint:
    """The server in a thread, as a context manager; `asked` has the bodies that it received."""

    def __init__(
        self, habits: Habits | None = None, port: int = 0, tls: ssl.SSLContext | None = None
    ) -> None:
        self.habits = habits or Habits()
        self.asked: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.visited: list[str] = []  # paths with their queries
        self.most_at_once = self._at_once = 0
        self.lock = threading.Lock()
        self.server = ThreadingHTTPServer(("127.0.0.1", port), _handler(self))
        self.server.daemon_threads = True
        self._scheme = "https" if tls else "http"
        if tls:
            self.server.socket = tls.wrap_socket(self.server.socket, server_side=True)
        self._thread = threading.Thread(target=self.server.serve_forever, args=(0.01,))

    @property
    def url(self) -> str:
        return f"{self._scheme}://127.0.0.1:{self.server.server_address[1]}"

    def __enter__(self) -> "MockEndpoint":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.die()
        self._thread.join()

    def die(self) -> None:
        """Refuse every connection from now on."""
        self.server.shutdown()
        self.server.server_close()

    @contextmanager
    def counted(self) -> Iterator[int]:
        """The number of this request; counts how many are in flight."""
        with self.lock:
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
            number = len(self.asked)
        try:
            yield number
        finally:
            with self.lock:
                self._at_once -= 1


def _handler(mock: MockEndpoint) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True
        wbufsize = -1  # headers and body in one packet

        def log_message(self, *arguments: object) -> None:
            pass

        def do_GET(self) -> None:
            habits = mock.habits
            paths: dict[str, Any] = {"/v1/models": {"data": [{"id": habits.model}]}}
            mock.visited.append(self.path)
            value = (paths | dict(habits.paths)).get(self.path.partition("?")[0])
            time.sleep(habits.get_seconds)
            if habits.location and self.path.startswith("/v1/"):
                self.send(307, {}, {"Location": habits.location})
            elif self.path in habits.closed:
                self.send(403, {"error": {"message": "closed"}})
            elif habits.get_status != 200:
                self.send(habits.get_status, {"error": {"message": "still loading"}})
            elif value is None:
                self.send(404, {"error": {"message": "not found"}})
            else:
                self.send(200, value)

        def do_CONNECT(self) -> None:  # as a proxy that wants to know who asks
            self.send(407, {})

        def do_POST(self) -> None:
            length = int(self.headers["content-length"])
            sent = self.rfile.read(length)
            if len(sent) < length:  # the client went away in the middle of its request
                return
            body = json.loads(sent)
            with mock.counted() as number:
                with mock.lock:
                    mock.visited.append(self.path)
                    mock.asked.append(body)
                    mock.headers.append({k.lower(): v for k, v in self.headers.items()})
                time.sleep(mock.habits.delay_seconds)
                self.answer(number, body)

        def answer(self, number: int, body: dict[str, Any]) -> None:
            habits = mock.habits
            if habits.dies_after is not None and number >= habits.dies_after:
                threading.Thread(target=mock.die).start()
                self.hang_up()
            elif number < habits.hanging_up or (habits.poison and habits.poison in str(body)):
                self.hang_up()
            elif habits.revoked_after is not None and number >= habits.revoked_after:
                self.send(401, {"error": {"message": "the key was revoked"}})
            elif habits.key and self.headers["authorization"] != f"Bearer {habits.key}":
                got = self.headers["authorization"]
                self.send(401, {"error": {"message": f"wrong key {got}"}})
            elif number < habits.rate_limited:
                self.send(
                    429, {"error": {"message": "slow down"}}, {"Retry-After": habits.retry_after}
                )
            elif habits.status:
                self.send(habits.status, {"error": {"message": "no"}})
            elif number < habits.failing:
                self.send(500, {"error": {"message": "oops"}})
            elif self.path.partition("?")[0].endswith("/chat/completions") and not habits.chats:
                self.send(400, {"error": {"message": "no chat template is defined"}})
            elif refused := [name for name in habits.refusing if name in body]:
                self.send(400, {"error": {"message": f"unknown parameter: {refused[0]}"}})
            elif habits.body is not None:
                self.send(200, habits.body)
            elif body.get("stream"):
                self.stream(body)
            else:
                self.send(200, reply(habits, body))

        def hang_up(self) -> None:
            self.close_connection = True

        def send(self, status: int, value: Any, headers: Mapping[str, str] | None = None) -> None:
            text = isinstance(value, str)
            data = value if isinstance(value, bytes) else None
            if data is None:
                data = value.encode() if text else json.dumps(value).encode()
            self.send_response(status)
            for name, content in (headers or {}).items():
                self.send_header(name, content)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def stream(self, body: dict[str, Any]) -> None:
            whole = reply(mock.habits, body)
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.send_header("Connection", "close")
            self.end_headers()
            for chunk in chunks_of(whole, body, mock.habits.words_per_chunk):
                self.wfile.write(b"data: " + json.dumps(chunk).encode() + b"\n\n")
                self.wfile.flush()
            self.wfile.write(b"data: [DONE]\n\n")
            self.close_connection = True

    return Handler


class MockClient:
    """A client of such an endpoint that needs no network; `asked` has every request.

    `reply` scripts the answers; without it they are those of `habits`. `paths` are what GET finds.
    """

    def __init__(
        self,
        name: str,
        reply: Reply | None = None,
        *,
        habits: Habits | None = None,
        paths: Mapping[str, Any] | None = None,
        missing: Mapping[str, str] | None = None,
        url: str = "http://127.0.0.1:1/v1",
    ) -> None:
        self.endpoint = Endpoint(name, url, "model")
        self.abilities = Abilities(missing or {})
        self.asked: list[Request] = []
        self.habits, self.paths = habits or Habits(), paths or {}
        self.reply: Reply = reply or self.by_habits
        self.of_batches: Callable[[int], MockClient] | None = None

    def by_habits(self, request: Request) -> Answer:
        """The answer that the server would give."""
        return read_answer(reply(self.habits, body_of(request, "mock", Abilities())), 1.0)

    async def ask(self, request: Request) -> Answer:
        self.asked.append(request)
        return self.reply(request)

    def again(self, *, concurrency: int) -> "MockClient":
        return self.of_batches(concurrency) if self.of_batches else self

    async def get(self, path: str) -> Any:
        return self.paths.get(path)

    async def close(self) -> None:
        pass


@contextmanager
def comparing(
    folder: Path, original: MockClient, pruned: MockClient, **options: Any
) -> Iterator[Context]:
    """A context as a run has it, with a real journal in the folder; `options` are common ones."""
    with asyncio.Runner() as runner, Journal(folder, {}) as journal:
        yield Context((original, pruned), journal, CommonOptions(**options), runner)


def run_suite(
    suite: Suite, folder: Path, original: MockClient, pruned: MockClient, **options: Any
) -> SuiteResult:
    """What a suite finds; `options` are the suite's own and common ones."""
    common = {field.name for field in fields(CommonOptions)}
    own = {name: value for name, value in options.items() if name not in common}
    shared = {name: value for name, value in options.items() if name in common}
    with comparing(folder, original, pruned, **shared) as context:
        return suite.configured(replace(suite.options, **own)).run(context)


def compared(
    suite: Suite, folder: Path, original: Habits, pruned: Habits, **options: Any
) -> SuiteResult:
    """What a suite finds about two endpoints with these habits."""
    clients = MockClient("original", habits=original), MockClient("pruned", habits=pruned)
    return run_suite(suite, folder, *clients, **options)


def scoring(request: Request, *, quality: float = 0.0) -> Answer:
    """An endpoint whose tokens are characters: log-probabilities that depend on the text alone."""
    text = request.prompt or request.messages[-1]["content"]
    logprobs = [None, *(-_chance(text[:n]) + quality for n in range(2, len(text) + 1))]
    return Answer(
        text=" 1",
        prompt_tokens=len(text),
        completion_tokens=1,
        prompt_logprobs=tuple(logprobs) if request.prompt_logprobs is not None else None,
        e2e_ms=1.0,
    )


def _chance(text: str) -> float:
    return hashlib.sha256(text.encode()).digest()[0] / 64
