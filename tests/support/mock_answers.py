"""The answers of the mock endpoint, with planted flaws, and their JSON in the OpenAI API.

An answer depends only on the prompt, the temperature and the seed (`say`), so that a run can be
repeated. `Habits` say what is wrong with an endpoint.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
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
    """The behaviour of an endpoint; counts refer to requests for answers since it started."""

    model: str = "mock"
    salt: str = ""
    wrong_language: float = 0.0  # share of answers
    hanja: float = 0.0  # share of answers
    ms_per_token: float = 10.0  # in the result of `times`; nothing sleeps
    rate_limited: int = 0
    retry_after: str = "0"
    failing: int = 0
    hanging_up: int = 0
    words_per_chunk: int = 1  # of a stream
    status: int = 0  # of every answer, unless 0
    get_status: int = 200  # of GET requests
    get_seconds: float = 0.0
    poison: str = ""  # the server hangs up on prompts that contain it
    silent: tuple[str, ...] = ()  # fields that it ignores
    refusing: tuple[str, ...] = ()  # fields that it answers with 400
    chats: bool = True
    paths: Mapping[str, Any] = field(default_factory=dict)
    key: str = ""
    body: bytes | None = None  # sent instead of every answer
    # Changes the JSON of every answer, such as where its text is.
    reshape: Callable[[dict[str, Any]], dict[str, Any]] = lambda answer: answer
    dies_after: int | None = None
    revoked_after: int | None = None  # from then on, the key is refused
    location: str = ""  # to which every path of the API redirects
    closed: tuple[str, ...] = ()  # paths that are forbidden
    delay_seconds: float = 0.0


def chance(*parts: object) -> float:
    """A number from 0 to 1 that depends only on the parts."""
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
    """Whether the answer to (prompt, temperature, seed) is in the wrong language."""
    return chance("language", habits.salt, *about) < habits.wrong_language


def leaks_hanja(habits: Habits, *about: object) -> bool:
    """Whether the answer to (prompt, temperature, seed) contains a hanja."""
    return chance("hanja", habits.salt, *about) < habits.hanja


def times(habits: Habits, *about: object, tokens: int) -> list[float]:
    """Milliseconds that each token takes; the first one, with the prompt, takes ten times as long.

    The endpoint's speed has 5 % of noise, and a busy machine, which both sides share, makes it up
    to twice as slow.
    """
    busy = 1 + chance("busy", *about)
    noise = (0.95 + 0.1 * chance(habits.salt, *about, n) for n in range(tokens))
    whole = [habits.ms_per_token * busy * one for one in noise]
    return [10 * whole[0], *whole[1:]]


def wants_korean(prompt: str) -> bool:
    """Whether a prompt asks for Korean, as a person would understand it."""
    asks = "Korean" in prompt, "영어" in prompt
    return asks[0] or (not asks[1] and any("가" <= character <= "힣" for character in prompt))


def reply(habits: Habits, body: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON of an answer, with the requested fields that are not ignored."""
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
    return habits.reshape(answer)


def chunks_of(
    whole: Mapping[str, Any], body: Mapping[str, Any], at_once: int
) -> Iterator[dict[str, Any]]:
    """The same answer word by word; its token counts come last, if they are asked for."""
    choice = whole["choices"][0]
    message = choice.get("message", {})
    if thoughts := message.get("reasoning"):
        yield {"choices": [{"index": 0, "delta": {"reasoning": thoughts}}]}
    every = (message.get("content") or "" if message else choice["text"]).split(" ")
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
