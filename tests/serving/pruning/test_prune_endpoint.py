"""`POST /kprune/prune` and the pruner's part of `GET /kprune`, without an engine."""

import asyncio
import json
from collections import Counter
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest
from support.malformed import malformed_bytes, malformed_json
from support.prune_cases import LONG, LengthScores, pruning_of, tokens

from vllm_kprune.serving.pruning.service import PromptPruning
from vllm_kprune.serving.pruning.worker import Worker

pytestmark = pytest.mark.usefixtures("vllm_ready")

CHAT = [{"role": "user", "content": LONG}, {"role": "user", "content": "Where?"}]


async def _ask(pruning: PromptPruning | None, keys: list[str], how: Mapping[str, Any]) -> Any:
    from fastapi import FastAPI
    from httpx import ASGITransport, AsyncClient

    from vllm_kprune.serving.endpoint import register

    app = FastAPI()
    register().attach_router(app)
    app.state.kprune, app.state.kprune_break_even = {}, None
    app.state.kprune_pruning, app.state.args = pruning, SimpleNamespace(api_key=keys)
    async with AsyncClient(transport=ASGITransport(app), base_url="http://test") as client:
        return await client.request(**how)


def post(body: Any, pruning: PromptPruning | None = None, **how: Any) -> tuple[int, Any]:
    pruning = pruning or pruning_of(LengthScores())
    given: dict[str, Any] = {"content": body} if isinstance(body, bytes) else {"json": body}
    request = {"method": "POST", "url": "/kprune/prune", "headers": how.get("headers"), **given}
    answer = asyncio.run(_ask(pruning, how.get("keys", []), request))
    return answer.status_code, answer.json()


def test_every_piece_is_listed_with_its_score_and_whether_it_is_kept() -> None:
    code, answer = post({"prompt": LONG, "keep": 0.5, "force_tokens": ["mat"]})
    assert code == 200
    (segment,) = answer["segments"]
    pieces = segment["pieces"]
    assert "".join(LONG[p["start"] : p["end"]] for p in pieces) == LONG
    assert "".join(LONG[p["start"] : p["end"]] for p in pieces if p["kept"]) == answer["prompt"]
    assert [LONG[p["start"] : p["end"]] for p in pieces if p["forced"]] == ["mat"]
    assert all(p["score"] >= 0 for p in pieces)
    assert segment["left_whole"] is None
    assert answer["tokens"] == {"original": tokens(LONG), "kept": tokens(answer["prompt"])}
    assert answer["tokens"] == segment["tokens"]
    assert (segment["text"], segment["kept"]) == (LONG, answer["prompt"])
    assert (segment["keep"], segment["target_tokens"], answer["ranker"]) == (0.5, None, "tiny")


def test_short_texts_are_shown_whatever_the_break_even() -> None:
    pruning = pruning_of(LengthScores(), min_tokens=10_000)
    assert len(post({"prompt": LONG, "keep": 0.5}, pruning)[1]["segments"]) == 1


def test_messages_and_documents_are_shown_segment_by_segment() -> None:
    body = {"messages": CHAT, "documents": [{"title": "a", "text": LONG * 2}], "keep": 0.5}
    code, answer = post(body)
    assert code == 200
    assert [segment["text"] for segment in answer["segments"]] == [LONG, LONG * 2]
    assert answer["messages"][1] == CHAT[1]
    assert answer["documents"][0] == {"title": "a", "text": answer["segments"][1]["kept"]}


@pytest.mark.parametrize(
    "body",
    [
        {"prompt": f"{LONG}\ud83d", "keep": 0.5},
        {"messages": [{"role": "\ud800", "content": LONG}], "keep": 0.5},
        {"messages": [{"role": "user", "content": LONG, "name": "\udfff"}], "keep": 0.5},
        {"prompt": LONG, "keep": 0.5, "\ud800": 1},
    ],
)
def test_half_a_character_is_refused_wherever_it_is(body: Any) -> None:
    code, answer = post(json.dumps(body).encode())
    assert code == 400
    assert "half a character" in answer["error"]["message"]


@pytest.mark.parametrize("chat", [False, True])
def test_200_malformations_are_refused_in_one_line_or_answered(chat: bool) -> None:
    texts = {"messages": CHAT, "documents": [{"title": "a", "text": LONG}]}
    body = {**(texts if chat else {"prompt": LONG}), "keep": 0.5, "unit": "word"}
    codes = Counter[int]()
    variants = [*malformed_json(body, 80), *malformed_bytes(json.dumps(body).encode(), 20)]
    for data in variants:
        code, answer = post(data)  # whose bytes are JSON, or this would fail
        codes[code] += 1
        if code == 400:
            message = answer["error"]["message"]
            assert len(message.splitlines()) == 1
            assert len(message) < 1500
        else:
            kept = sum(piece["kept"] for one in answer["segments"] for piece in one["pieces"])
            assert kept <= sum(len(one["pieces"]) for one in answer["segments"])
    assert set(codes) == {200, 400}
    assert codes[400] >= 50


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ([], "expected a JSON object"),
        (b"{", "the body is not JSON"),
        (b"[" * 100_000, "the body is not JSON"),
        (b'"' + b"x" * (1 << 20) + b'"', "more than 1048576 bytes"),
        ({"prompt": "a"}, "give keep, a share below 1 (0.8), or target_tokens"),
        ({"keep": 0.5}, "give either prompt, a text, or messages, a list"),
        ({"prompt": "a", "messages": [], "keep": 0.5}, "give either prompt"),
        ({"prompt": 1, "keep": 0.5}, "prompt: expected one text"),
        ({"prompt": "a", "documents": [], "keep": 0.5}, "documents go with messages"),
        ({"messages": "a", "keep": 0.5}, "messages: expected a list of objects"),
        ({"messages": [], "documents": ["a"], "keep": 0.5}, "documents: expected a list"),
        ({"prompt": "a", "kep": 0.5}, "unknown 'kep'; did you mean 'keep'?"),
        ({"prompt": "a", "min_tokens": 5}, "unknown 'min_tokens'"),
        ({"prompt": "a", "keep": 7}, "keep: got 7, expected a share"),
        ({"prompt": "<kprune>a", "keep": 0.5}, "<kprune> at character 0 is not closed"),
    ],
)
def test_bad_bodies_are_answered_with_the_reason(body: Any, message: str) -> None:
    code, answer = post(body)
    assert code == 400
    assert message in answer["error"]["message"]


def test_a_server_without_pruner_names_the_option() -> None:
    code, answer = post({"prompt": "a", "keep": 0.5}, PromptPruning(None))
    assert code == 400
    assert "--kprune-input-pruner" in answer["error"]["message"]


def test_what_is_longer_than_any_prompt_is_refused() -> None:
    pruning = pruning_of(LengthScores())
    pruning.max_tokens = 5
    code, answer = post({"prompt": LONG, "keep": 0.5}, pruning)
    assert code == 400
    assert "more than 5 tokens to prune" in answer["error"]["message"]


def test_when_too_many_wait_it_is_to_be_tried_again() -> None:
    pruning = pruning_of(LengthScores())
    pruning.worker = Worker(1, most_pending=0)
    assert post({"prompt": LONG, "keep": 0.5}, pruning)[0] == 503


def test_the_api_key_is_asked_for() -> None:
    body = {"prompt": LONG, "keep": 0.5}
    assert post(body, keys=["secret"])[0] == 401
    assert post(body, keys=["secret"], headers={"Authorization": "Bearer secres"})[0] == 401
    assert post(body, keys=["secret"], headers={"Authorization": "Bearer secret"})[0] == 200


def test_the_status_has_defaults_and_cache_but_no_path() -> None:
    pruning = pruning_of(LengthScores(), keep=0.8, min_tokens=300, pruner_cache=1)
    asyncio.run(_ask(pruning, [], {"method": "GET", "url": "/kprune"}))
    answer = asyncio.run(_ask(pruning, [], {"method": "GET", "url": "/kprune"})).json()
    status = answer["input_pruner"]
    assert status["available"] is True
    assert (status["ranker"], status["scorer"]) == ("tiny", "length")
    assert status["default"]["options"]["keep"] == 0.8
    assert status["default"]["roles"] == ["user", "assistant"]
    assert (status["min_tokens"], status["break_even"]) == (300, None)
    assert status["cache"] == {"max_bytes": 1 << 20, "filled": 0.0}
    assert "kprune_keep" in status["request_options"]
    assert "kprune_prune_roles" in status["request_options"]
