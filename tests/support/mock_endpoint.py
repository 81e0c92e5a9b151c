"""An OpenAI-compatible server of our own: real HTTP on a free port, with planted flaws.

What it says depends on the prompt, the temperature and the seed alone (`say`), so that a run can be
repeated. `Habits` are what is wrong with it.
"""

import hashlib
import json
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KOREAN = (
    "이 질문에 대한 답은 생각보다 간단합니다.",
    "먼저 필요한 것을 차례대로 준비해 두는 것이 좋습니다.",
    "그다음에는 천천히 살펴보면서 하나씩 확인해 보세요.",
    "많은 사람이 이 방법으로 좋은 결과를 얻었습니다.",
    "다만 상황에 따라 다른 방법이 더 나을 수도 있습니다.",
    "마지막으로 주변 사람과 함께 이야기해 보기를 권합니다.",
)
ENGLISH = (
    "The answer to this question is simpler than it looks.",
    "First you should prepare everything that you need for it.",
    "Then look at each part slowly and check it once more.",
    "Many people have had good results with this method.",
    "In some places another way may be better, of course.",
    "Finally, talk about it with the people around you.",
)
HANJA = "漢"


@dataclass(frozen=True)
class Habits:
    """What an endpoint does; counts are of requests for answers since it started."""

    model: str = "mock"
    salt: str = ""
    wrong_language: float = 0.0  # share of answers
    hanja: float = 0.0  # share of answers
    ms_per_token: float = 10.0  # as `times` tells: nothing sleeps
    rate_limited: int = 0
    retry_after: str = "0"
    failing: int = 0
    hanging_up: int = 0
    words_per_piece: int = 1  # of a stream
    status: int = 0  # of every answer, if any
    get_status: int = 200  # and of what is no answer
    get_seconds: float = 0.0
    poison: str = ""  # hangs up on prompts with it
    silent: tuple[str, ...] = ()  # fields that it ignores
    refusing: tuple[str, ...] = ()  # fields that it answers with 400
    chats: bool = True
    paths: Mapping[str, Any] = field(default_factory=dict)
    key: str = ""
    body: bytes | None = None  # sent instead of every answer
    dies_after: int | None = None
    delay_seconds: float = 0.0


def chance(*parts: object) -> float:
    """A number from 0 to 1 that depends on the parts alone."""
    text = " ".join(map(str, parts))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big") / 2**48


def say(habits: Habits, prompt: str, temperature: float, seed: int) -> str:
    """The answer to a prompt: sentences in its language (or the one it asks for), with flaws."""
    korean = wants_korean(prompt) != in_wrong_language(habits, prompt, temperature, seed)
    sentences = KOREAN if korean else ENGLISH
    order = sorted(sentences, key=lambda one: chance(one, prompt, temperature, seed))
    text = " ".join(order[:4])
    if leaks_hanja(habits, prompt, temperature, seed):
        place = int(chance("place", prompt, temperature, seed) * len(text))
        text = text[:place] + HANJA + text[place:]
    return text


def in_wrong_language(habits: Habits, *about: object) -> bool:
    """Is the answer to (prompt, temperature, seed) in the wrong language?"""
    return chance("language", habits.salt, *about) < habits.wrong_language


def leaks_hanja(habits: Habits, *about: object) -> bool:
    """Has the answer to (prompt, temperature, seed) a hanja in it?"""
    return chance("hanja", habits.salt, *about) < habits.hanja


def times(habits: Habits, *about: object, tokens: int) -> list[float]:
    """Milliseconds that each token takes, the first (with the prompt) ten times as long: its own
    speed with a twentieth of noise, and on a busy machine, which both sides share, up to twice."""
    busy = 1 + chance("busy", *about)
    noise = (0.95 + 0.1 * chance(habits.salt, *about, n) for n in range(tokens))
    whole = [habits.ms_per_token * busy * one for one in noise]
    return [10 * whole[0], *whole[1:]]


def wants_korean(prompt: str) -> bool:
    """Which language a prompt asks for, as a person would see it."""
    asks = "Korean" in prompt, "영어" in prompt
    return asks[0] or (not asks[1] and any("가" <= character <= "힣" for character in prompt))


class MockEndpoint:
    """The server in a thread; a context manager. `asked` has the bodies it was sent."""

    def __init__(self, habits: Habits | None = None, port: int = 0) -> None:
        self.habits = habits or Habits()
        self.asked: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.most_at_once = self._at_once = 0
        self.lock = threading.Lock()
        self.server = ThreadingHTTPServer(("127.0.0.1", port), _handler(self))
        self.server.daemon_threads = True
        self._thread = threading.Thread(target=self.server.serve_forever, args=(0.01,))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}"

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
        """The number of this request, and how many are under way."""
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
            value = (paths | dict(habits.paths)).get(self.path)
            time.sleep(habits.get_seconds)
            if habits.get_status != 200:
                self.send(habits.get_status, {"error": {"message": "still loading"}})
            elif value is None:
                self.send(404, {"error": {"message": "not found"}})
            else:
                self.send(200, value)

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            with mock.counted() as number:
                with mock.lock:
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
            elif self.path.endswith("/chat/completions") and not habits.chats:
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
            for piece in pieces(whole, body, mock.habits.words_per_piece):
                self.wfile.write(b"data: " + json.dumps(piece).encode() + b"\n\n")
                self.wfile.flush()
            self.wfile.write(b"data: [DONE]\n\n")
            self.close_connection = True

    return Handler


def reply(habits: Habits, body: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON of an answer, with what was asked for and is not ignored."""
    chat = "messages" in body
    prompt = body["messages"][-1]["content"] if chat else body["prompt"]
    text = say(habits, prompt, body["temperature"], body.get("seed") or 0)
    most = body.get("max_tokens") or body["max_completion_tokens"]
    words = [word if n == 0 else f" {word}" for n, word in enumerate(text.split(" "))][:most]
    asked = {name for name in body if name not in habits.silent}
    choice: dict[str, Any] = {"index": 0, "finish_reason": "stop"}
    choice |= {"message": {"content": "".join(words)}} if chat else {"text": "".join(words)}
    if "logprobs" in asked:
        choice["logprobs"] = _logprobs(words, chat=chat)
    if "return_token_ids" in asked:
        choice["token_ids"] = [int(1e6 * chance(word)) for word in words]
    answer: dict[str, Any] = {"choices": [choice]}
    if "prompt_logprobs" in asked:
        places = [{"7": {"logprob": -chance(word)}} for word in prompt.split()]
        answer["prompt_logprobs"] = [None, *places]
    if "usage" not in habits.silent:
        answer["usage"] = {"prompt_tokens": len(prompt.split()), "completion_tokens": len(words)}
    return answer


def pieces(
    whole: Mapping[str, Any], body: Mapping[str, Any], at_once: int
) -> Iterator[dict[str, Any]]:
    """The same answer word by word; its token counts come last, if they are asked for."""
    choice = whole["choices"][0]
    text = choice["message"]["content"] if "message" in choice else choice["text"]
    every = text.split(" ")
    words = [" ".join(every[n : n + at_once]) for n in range(0, len(every), at_once)]
    for number, word in enumerate(words):
        content = word if number == 0 else f" {word}"
        last = {"finish_reason": "stop"} if number + 1 == len(words) else {}
        kind = {"delta": {"content": content}} if "message" in choice else {"text": content}
        yield {"choices": [{"index": 0, **kind, **last}]}
    if "stream_options" in body and "usage" in whole:
        yield {"choices": [], "usage": whole["usage"]}


def _logprobs(words: list[str], *, chat: bool) -> dict[str, Any]:
    values = [-chance("logprob", word) for word in words]
    tops = [{word: value, "other": value - 1} for word, value in zip(words, values, strict=True)]
    if not chat:
        return {"tokens": words, "token_logprobs": values, "top_logprobs": tops}
    content = [
        {
            "token": word,
            "logprob": value,
            "top_logprobs": [{"token": t, "logprob": v} for t, v in top.items()],
        }
        for word, value, top in zip(words, values, tops, strict=True)
    ]
    return {"content": content}
