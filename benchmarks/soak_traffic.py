"""The traffic of `benchmarks/soak.py`: requests of every kind, from a seed, and their answers.

A table has one row for each kind. Every kind but the last two is answered with a text, which is
checked for characters that its guard does not allow; a greedy one is compared with the answer that
the same request gets alone.
"""

import http.client
import json
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from vllm_kprune.guard.characters import allowed_characters
from vllm_kprune.guard.policy import parse_policy

__all__ = ["KINDS", "PLAIN_KINDS", "Answer", "Asked", "draw", "foreign", "send"]

_SECONDS = 300.0  # for one answer, before it counts as lost
_TEXTS = (
    "대한민국의 수도는 서울이고, 가장 큰 항구 도시는 부산이다. 서울의 인구는 약 구백만 명이다. ",
    "The quick brown fox jumps over the lazy dog, and then it rests under an old oak tree. ",
    "中国的首都是北京，最大的城市是上海。长江是中国最长的河流。",
    "def fibonacci(n):\n    return n if n < 2 else fibonacci(n - 1) + fibonacci(n - 2)\n\n",
    "日本の首都は東京で、人口は約千四百万人です。富士山は一番高い山です。",
)
_GUARDS: tuple[Mapping[str, Any], ...] = (
    {},  # the server's
    {"languages": "ko"},
    {"languages": "en"},
    {"languages": "en,ja"},
    {"languages": "ko", "hanja": "all"},
    {"scripts": "Latin,Cyrillic"},
    {"languages": "th,en", "digits": 0},
)


@dataclass(frozen=True)
class Asked:
    """A request: `path` below the server's root, `wanted` HTTP status; `stop_after`: chunks."""

    kind: str
    path: str
    body: bytes
    wanted: int = 200
    greedy: bool = False
    stream: bool = False
    stop_after: int | None = None
    guard: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Answer:
    """What came back. `steps`: each token, and how far its two best log-probabilities are apart."""

    status: int
    text: str
    steps: tuple[tuple[str, float], ...]
    seconds: float


def draw(
    chance: random.Random,
    model: str,
    server_guard: Mapping[str, Any],
    kinds: Sequence[str] | None = None,
) -> Asked:
    """A request of a random kind, of all kinds or of these."""
    names = list(KINDS if kinds is None else kinds)
    kind = chance.choices(names, [KINDS[name][0] for name in names])[0]
    return KINDS[kind][1](kind, chance, model, server_guard)


def _base(chance: random.Random, model: str, *, long: bool = False) -> dict[str, Any]:
    text = "".join(chance.choices(_TEXTS, k=chance.randint(12, 20) if long else 1))
    return {
        "model": model,
        "prompt": text,
        "max_tokens": chance.choice((8, 16, 32)),
        "temperature": 0.0,
        "logprobs": 2,
    }


def _request(
    kind: str, chance: random.Random, model: str, server_guard: Mapping[str, Any], **how: Any
) -> Asked:
    """A completion or a chat; `how` says what is special about it."""
    body = _base(chance, model, long=how.get("long", False))
    guard, more = dict(chance.choice(_GUARDS)), dict(how.get("xargs", {}))
    body["vllm_xargs"] = {f"kprune_{name}": value for name, value in (guard | more).items()}
    path = "/v1/completions"
    if how.get("chat"):
        path = "/v1/chat/completions"
        turns = [("user", body.pop("prompt")), ("assistant", "네. Yes."), ("user", _TEXTS[1])]
        body["messages"] = [{"role": role, "content": text} for role, text in turns]
        body |= {"logprobs": True, "top_logprobs": 2}
    body |= {"temperature": how.get("temperature", 0.0), "stream": how.get("stream", False)}
    return Asked(
        kind, path, json.dumps(body).encode(), greedy=not body["temperature"],
        stream=body["stream"], stop_after=how.get("stop_after"), guard=guard or server_guard,
    )  # fmt: skip


def _kind(**how: Any) -> Callable[..., Asked]:
    return lambda kind, chance, model, guard: _request(kind, chance, model, guard, **how)


def _new_guard(
    kind: str, chance: random.Random, model: str, server_guard: Mapping[str, Any]
) -> Asked:
    """A policy that hardly anybody has asked for before."""
    allow = "".join(chr(chance.randrange(0x2100, 0x2200)) for _ in range(3))
    return _request(kind, chance, model, {**server_guard, "allow": allow}, xargs={"allow": allow})


def _bad(kind: str, chance: random.Random, model: str, server_guard: Mapping[str, Any]) -> Asked:
    """A client's mistake: it must be answered with HTTP 400, and hurt nobody else."""
    body = _base(chance, model)
    wrong = chance.choice(
        ({"kprune_languages": "klingon"}, {"kprune_keep": 7}, {"kprune_langages": "ko"},
         {"kprune_allow": "x" * 5_000}, {"kprune_keep": "0.5" + "0" * 40 + "junk"})
    )  # fmt: skip
    return Asked(kind, "/v1/completions", json.dumps(body | {"vllm_xargs": wrong}).encode(), 400)


def _preview(
    kind: str, chance: random.Random, model: str, server_guard: Mapping[str, Any]
) -> Asked:
    text = "".join(chance.choices(_TEXTS, k=6))
    return Asked(kind, "/kprune/prune", json.dumps({"prompt": text, "keep": 0.5}).encode())


# Kind -> how often, and what makes one.
KINDS: Mapping[str, tuple[float, Callable[..., Asked]]] = {
    "completion": (4, _kind()),
    "chat": (4, _kind(chat=True)),
    "stream": (3, _kind(chat=True, stream=True)),
    "sampled": (3, _kind(temperature=1.2)),
    "pruned": (3, _kind(long=True, xargs={"keep": 0.6})),
    "pruned chat": (2, _kind(chat=True, long=True, xargs={"keep": 0.5})),
    "long": (2, _kind(long=True)),
    "new guard": (1, _new_guard),
    "cancelled": (2, _kind(chat=True, stream=True, stop_after=3)),
    "preview": (1, _preview),
    "bad": (2, _bad),
}
# Those that a server without kprune can answer.
PLAIN_KINDS = ("completion", "chat", "stream", "sampled", "long", "cancelled")


def foreign(asked: Asked, text: str) -> set[str]:
    """Characters of an answer that its guard does not allow."""
    # Cut in the middle of a character, an answer ends with this one: it is none of the model's.
    text = text.removesuffix("\ufffd")
    policy = parse_policy(asked.guard) if asked.guard else None
    if policy is None:
        return set()
    allowed = allowed_characters(policy)
    return {character for character in text if not allowed[ord(character)]}


def send(url: str, asked: Asked) -> Answer:
    """Send a request, and read its answer or its beginning. Raises `OSError` if it is lost."""
    parts, began = urlsplit(url), time.monotonic()
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=_SECONDS)
    try:
        connection.request("POST", asked.path, asked.body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        if asked.stream and response.status == 200:
            text, steps = _streamed(response, asked.stop_after)
            return Answer(200, text, steps, time.monotonic() - began)
        data = response.read()
    finally:
        connection.close()
    seconds = time.monotonic() - began
    if response.status != 200 or asked.path.startswith("/kprune"):
        return Answer(response.status, "", (), seconds)
    (choice,) = json.loads(data)["choices"]
    return Answer(200, _text_of(choice), _steps(choice), seconds)


def _streamed(response: Any, stop_after: int | None) -> tuple[str, tuple[tuple[str, float], ...]]:
    parts: list[str] = []
    steps: list[tuple[str, float]] = []
    for line in response:
        if not line.startswith(b"data: ") or line.strip() == b"data: [DONE]":
            continue
        for choice in json.loads(line[6:]).get("choices", ()):
            parts.append(choice["delta"].get("content") or "")
            steps += _steps(choice)
        if stop_after is not None and len(parts) >= stop_after:
            break
    return "".join(parts), tuple(steps)


def _text_of(choice: Mapping[str, Any]) -> str:
    return choice["text"] if "text" in choice else choice["message"].get("content") or ""


def _steps(choice: Mapping[str, Any]) -> tuple[tuple[str, float], ...]:
    found = choice.get("logprobs") or {}
    if "content" in found:
        steps = [(one["token"], [top["logprob"] for top in one["top_logprobs"]])
                 for one in found["content"] or ()]  # fmt: skip
    else:
        best = (list(step.values()) for step in found.get("top_logprobs") or ())
        steps = list(zip(found.get("tokens") or (), best, strict=False))
    return tuple((token, _gap(best)) for token, best in steps)


def _gap(best: Sequence[float]) -> float:
    first, *others = sorted(best, reverse=True)
    return first - others[0] if others else 1.0
