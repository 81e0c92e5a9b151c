"""Input pruning on live servers, original and overlay, each of which is its own ranker."""

import json
import time
from collections.abc import Iterator
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
from openai import BadRequestError, OpenAI
from support.live_client import client

from vllm_kprune.demo.servers import VllmServer

pytestmark = pytest.mark.server

TEXT = (
    "Seven ships sailed from Busan in the spring of 1998, and the captain of the last one was a "
    "man who had never been at sea before. He was said to have read every book about the wind. "
    "배 일곱 척이 부산에서 떠났고 마지막 배의 선장은 바다에 나가 본 적이 없는 사람이었다. "
)
QUESTION = {"role": "user", "content": "Who was the captain?"}
CHAT = [
    {"role": "system", "content": "Answer from what was said before, and say so if you cannot."},
    {"role": "user", "content": TEXT * 2},
    {"role": "assistant", "content": TEXT},
    QUESTION,
]
# The original's server measures where pruning begins to pay; these requests do not ask.
HALF = {"kprune_keep": 0.5, "kprune_min_tokens": 0}
ORIGINAL = "x-kprune-prompt-tokens-original"
KEPT = "x-kprune-prompt-tokens-kept"
SEGMENTS = "x-kprune-segments-pruned"
BLOCK = 128  # tokens, of vLLM's prefix cache on CPUs


@pytest.fixture(params=["original", "pruned"])
def server(request: pytest.FixtureRequest) -> VllmServer:
    """Each of the two servers."""
    found: VllmServer = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def api(server: VllmServer) -> Iterator[OpenAI]:
    with client(server) as opened:
        yield opened


def send(call: Any, **how: Any) -> tuple[Any, dict[str, int]]:
    """An answer, and the counts in its headers."""
    raw = call.with_raw_response.create(**how)
    reported = {name: int(raw.headers[name]) for name in (ORIGINAL, KEPT, SEGMENTS)}
    return raw.parse(), reported


def complete(api: OpenAI, server: VllmServer, prompt: Any, options: Any = None, **how: Any) -> Any:
    extra = {"vllm_xargs": options} if options else {}
    extra |= {name: how.pop(name) for name in ("echo", "return_token_ids") if name in how}
    request = {"model": server.model, "prompt": prompt, "max_tokens": 2, "temperature": 0}
    return send(api.completions, **request, **how, extra_body=extra)


def chat(api: OpenAI, server: VllmServer, messages: Any, options: Any = None, **extra: Any) -> Any:
    stream = {name: extra.pop(name) for name in ("stream", "stream_options") if name in extra}
    body = {**extra, **({"vllm_xargs": options} if options else {})}
    return send(
        api.chat.completions, model=server.model, messages=messages, max_tokens=2,
        temperature=0, **stream, extra_body=body,
    )  # fmt: skip


def ask(server: VllmServer, path: str, body: Any = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = Request(f"{server.url}{path}", data, {"Content-Type": "application/json"})
    with urlopen(request, timeout=60) as response:
        return json.loads(response.read())


def metrics(server: VllmServer) -> dict[str, float]:
    with urlopen(f"{server.url}/metrics", timeout=30) as response:
        lines = response.read().decode().splitlines()
    rows = (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    return {name: float(number) for name, number in rows}


def is_subsequence(part: str, whole: str) -> bool:
    rest = iter(whole)
    return all(character in rest for character in part)


def test_usage_is_what_the_model_saw_and_the_headers_have_the_rest(
    api: OpenAI, server: VllmServer
) -> None:
    whole, reported = complete(api, server, TEXT)
    assert reported == {
        ORIGINAL: whole.usage.prompt_tokens,
        KEPT: whole.usage.prompt_tokens,
        SEGMENTS: 0,
    }
    half, reported = complete(api, server, TEXT, HALF)
    assert half.usage.prompt_tokens == reported[KEPT]
    assert reported[KEPT] < 0.6 * reported[ORIGINAL]
    assert (
        abs(reported[ORIGINAL] - whole.usage.prompt_tokens) <= 2
    )  # tokens may join at a segment's end
    assert reported[SEGMENTS] == 1


def test_the_model_sees_a_subsequence_of_the_text(api: OpenAI, server: VllmServer) -> None:
    answer, _ = complete(api, server, TEXT, HALF, echo=True)
    seen = answer.choices[0].text
    assert "Busan" in seen
    assert "부산" in seen
    shown = ask(server, "/kprune/prune", {"prompt": TEXT, "keep": 0.5})
    assert seen.startswith(shown["prompt"])
    assert is_subsequence(shown["prompt"], TEXT)
    assert len(shown["prompt"]) < len(TEXT)


def test_earlier_turns_are_pruned_and_streams_have_the_same_headers(
    api: OpenAI, server: VllmServer
) -> None:
    answer, reported = chat(api, server, CHAT, HALF)
    assert reported[SEGMENTS] == 2
    assert answer.usage.prompt_tokens == reported[KEPT] < 0.7 * reported[ORIGINAL]
    usage = {"include_usage": True}
    stream, also_reported = chat(api, server, CHAT, HALF, stream=True, stream_options=usage)
    assert also_reported == reported
    assert list(stream)[-1].usage.prompt_tokens == reported[KEPT]


def test_parts_and_roles_and_a_lone_question(api: OpenAI, server: VllmServer) -> None:
    parts = [{"role": "user", "content": [{"type": "text", "text": TEXT}]}, QUESTION]
    _, as_parts = chat(api, server, parts, HALF)
    _, as_text = chat(api, server, [{"role": "user", "content": TEXT}, QUESTION], HALF)
    assert as_parts == as_text
    assert as_text[SEGMENTS] == 1
    assert chat(api, server, CHAT, {**HALF, "kprune_prune_roles": "user"})[1][SEGMENTS] == 1
    assert chat(api, server, [QUESTION], HALF)[1][SEGMENTS] == 0


def test_documents_are_pruned_each_by_itself(api: OpenAI, server: VllmServer) -> None:
    documents = [{"title": "ships", "text": TEXT}, {"title": "winds", "text": TEXT * 2}]
    whole, reported = chat(api, server, [QUESTION], documents=documents)
    assert reported[SEGMENTS] == 0
    half, reported = chat(api, server, [QUESTION], HALF, documents=documents)
    assert reported[SEGMENTS] == 2
    assert half.usage.prompt_tokens < 0.65 * whole.usage.prompt_tokens


def test_responses_are_pruned(api: OpenAI, server: VllmServer) -> None:
    raw = api.responses.with_raw_response.create(
        model=server.model,
        input=[{"role": "user", "content": TEXT * 2}, QUESTION],  # type: ignore[list-item]
        max_output_tokens=16,
        extra_body={"vllm_xargs": HALF},
    )
    usage = raw.parse().usage
    assert usage
    assert usage.input_tokens == int(raw.headers[KEPT]) < 0.65 * int(raw.headers[ORIGINAL])


def test_anthropics_messages_are_pruned(server: VllmServer) -> None:
    body = {
        "model": server.model,
        "messages": [
            {"role": "user", "content": TEXT * 2},
            {"role": "assistant", "content": "I see."},
            QUESTION,
        ],
        "max_tokens": 2,
        "vllm_xargs": HALF,
    }
    request = Request(f"{server.base_url}/messages", json.dumps(body).encode())
    request.add_header("Content-Type", "application/json")
    with urlopen(request, timeout=60) as response:
        reported = {name: int(response.headers[name]) for name in (ORIGINAL, KEPT)}
        usage = json.loads(response.read())["usage"]
    assert usage["input_tokens"] == reported[KEPT] < 0.65 * reported[ORIGINAL]


def test_marks_say_what_is_pruned_and_are_never_seen(api: OpenAI, server: VllmServer) -> None:
    marked = f'Read this. <kprune keep="0.5">{TEXT}</kprune> And this: {TEXT}'
    for options, segments in (({"kprune_min_tokens": 0}, 1), ({"kprune_keep": "off"}, 0)):
        answer, reported = complete(api, server, marked, options, echo=True)
        seen = answer.choices[0].text
        assert "kprune" not in seen
        assert seen.startswith("Read this. ")
        assert f" And this: {TEXT}" in seen
        assert (seen.count(TEXT), reported[SEGMENTS]) == (2 - segments, segments)
    literal, _ = complete(api, server, "<kprune>a", {"kprune_marks": "off"}, echo=True)
    assert literal.choices[0].text.startswith("<kprune>a")
    counted = ask(server, "/tokenize", {"model": server.model, "prompt": "<kprune>a</kprune>"})
    assert (
        counted["count"]
        == ask(server, "/tokenize", {"model": server.model, "prompt": "a"})["count"]
    )


def test_token_ids_are_left_alone(api: OpenAI, server: VllmServer) -> None:
    ids = ask(server, "/tokenize", {"model": server.model, "prompt": TEXT})["tokens"]
    answer, reported = complete(api, server, ids, HALF)
    assert answer.usage.prompt_tokens == len(ids) == reported[KEPT] == reported[ORIGINAL]


def test_several_prompts_are_each_pruned(api: OpenAI, server: VllmServer) -> None:
    answer, reported = complete(api, server, [TEXT, TEXT * 2], HALF)
    assert reported[SEGMENTS] == 2
    assert answer.usage.prompt_tokens == reported[KEPT] < 0.6 * reported[ORIGINAL]


def test_target_tokens_are_not_exceeded(api: OpenAI, server: VllmServer) -> None:
    _, reported = complete(
        api, server, TEXT * 3, {"kprune_target_tokens": 40, "kprune_min_tokens": 0}
    )
    assert 30 <= reported[KEPT] <= 41  # and <bos>


@pytest.mark.parametrize("scorer", ["attention", "random"])
def test_a_request_chooses_its_scorer(scorer: str, api: OpenAI, server: VllmServer) -> None:
    by_default = ask(server, "/kprune/prune", {"prompt": TEXT, "keep": 0.5})
    body = {"prompt": TEXT, "keep": 0.5, "scorer": scorer}
    chosen = ask(server, "/kprune/prune", body)
    assert chosen["prompt"] != by_default["prompt"]
    _, reported = complete(api, server, TEXT, {**HALF, "kprune_scorer": scorer})
    assert (
        reported[ORIGINAL] - reported[KEPT]
        == chosen["tokens"]["original"] - chosen["tokens"]["kept"]
    )


def test_prefix_caching_hits_on_segments_that_were_seen_before(
    api: OpenAI, server: VllmServer
) -> None:
    options = {**HALF, "kprune_keep": 0.55}  # prompts that no other test sends
    turns = [{"role": "user", "content": TEXT * 5}, {"role": "assistant", "content": TEXT * 3}]
    question = {"role": "user", "content": f"{TEXT} Who?"}
    first, reported = chat(api, server, [*turns, question], options)
    assert reported[SEGMENTS] == 2
    later = [*turns, question, {"role": "assistant", "content": "A man."}, QUESTION]
    second, reported = chat(api, server, later, options)
    assert reported[SEGMENTS] == 4  # the question is an earlier turn now
    body = {"messages": [*turns, question], "keep": 0.55}
    unchanged = ask(server, "/kprune/prune", body)["tokens"]["kept"]
    cached = second.usage.prompt_tokens_details.cached_tokens
    assert unchanged > 2 * BLOCK
    assert unchanged - BLOCK < cached < first.usage.prompt_tokens
    again, _ = chat(api, server, later, options)
    assert again.usage.prompt_tokens_details.cached_tokens >= reported[KEPT] - BLOCK - 1


def test_metrics_count_requests_tokens_and_the_cache(api: OpenAI, server: VllmServer) -> None:
    before = metrics(server)
    text = f"Counted once. {TEXT}"
    reported = [complete(api, server, text, HALF)[1] for _ in range(2)]
    complete(api, server, text, {"kprune_keep": 0.5, "kprune_min_tokens": 100_000})
    complete(api, server, text)
    after = metrics(server)

    def counts(name: str) -> float:
        return after[f"kprune_prune_{name}"] - before.get(f"kprune_prune_{name}", 0)

    assert counts('requests_total{outcome="pruned",reason=""}') == 2
    assert counts('requests_total{outcome="skipped",reason="below_break_even"}') == 1
    assert counts("original_tokens_total") == sum(one[ORIGINAL] for one in reported)
    assert counts("kept_tokens_total") == sum(one[KEPT] for one in reported)
    assert counts('cache_lookups_total{result="miss"}') == 1
    assert counts('cache_lookups_total{result="hit"}') == 1
    assert counts("segments_total") == counts("seconds_count") == counts("keep_rate_count") == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kprune_kep": 0.5}, "unknown option 'kprune_kep'; did you mean 'kprune_keep'"),
        ({"kprune_keep": 1.5}, "keep: got 1.5, expected a share of the tokens"),
        ({"kprune_unit": "byte"}, "unit: got 'byte', expected token or word"),
        ({"kprune_scorer": "best"}, "expected sentences, rarity, question, attention or random"),
        ({"kprune_prune_roles": "god"}, "expected user, assistant, system, developer or tool"),
        ({"kprune_keep": 0.5, "kprune_languages": "kx"}, "unknown 'kx'"),
    ],
)
def test_bad_options_are_client_errors_on_every_route(
    api: OpenAI, server: VllmServer, options: dict[str, Any], message: str
) -> None:
    for call in (
        lambda: complete(api, server, TEXT, options),
        lambda: complete(api, server, [1, 2, 3], options),
        lambda: chat(api, server, CHAT, options),
        lambda: api.responses.create(
            model=server.model, input="a", extra_body={"vllm_xargs": options}
        ),
    ):
        with pytest.raises(BadRequestError) as error:
            call()
        assert message in str(error.value)


def test_malformed_marks_are_client_errors(api: OpenAI, server: VllmServer) -> None:
    with pytest.raises(BadRequestError, match="not closed"):
        complete(api, server, "<kprune>a")
    with pytest.raises(BadRequestError, match="keep is '2'"):
        chat(api, server, [{"role": "user", "content": '<kprune keep="2">a</kprune>'}])
    with pytest.raises(HTTPError, match="400"):
        ask(server, "/kprune/prune", {"prompt": "a"})


def test_beams_are_grown_from_the_pruned_prompt(original: VllmServer) -> None:
    with client(original) as api:
        raw = api.completions.with_raw_response.create(
            model=original.model,
            prompt=TEXT,
            max_tokens=2,
            extra_body={"use_beam_search": True, "n": 2, "vllm_xargs": HALF},
        )
    assert int(raw.headers[SEGMENTS]) == 1
    assert len(raw.parse().choices) == 2


def test_a_client_that_hangs_up_costs_no_more_and_others_are_answered(
    original: VllmServer,
) -> None:
    name = 'kprune_prune_requests_total{outcome="cancelled",reason=""}'
    before = metrics(original).get(name, 0)
    body = {
        "model": original.model,
        "prompt": " ".join(f"{n} {TEXT}" for n in range(250)),  # seconds of attention
        "vllm_xargs": {**HALF, "kprune_scorer": "attention"},
    }
    with pytest.raises(TimeoutError):
        request = Request(f"{original.base_url}/completions", json.dumps(body).encode())
        request.add_header("Content-Type", "application/json")
        urlopen(request, timeout=0.7)
    with urlopen(f"{original.url}/health", timeout=10) as response:
        assert response.status == 200
    deadline = time.monotonic() + 30
    while metrics(original).get(name, 0) == before and time.monotonic() < deadline:
        time.sleep(0.1)
    assert metrics(original)[name] == before + 1
    with client(original) as api:
        assert complete(api, original, TEXT, {**HALF, "kprune_keep": 0.51})[1][SEGMENTS] == 1


def test_the_status_has_the_pruners_defaults_and_what_was_measured(
    original: VllmServer, pruned: VllmServer
) -> None:
    measured, given = (ask(one, "/kprune")["input_pruner"] for one in (original, pruned))
    for status in (measured, given):
        assert (status["available"], status["ranker"]) == (True, "self")
        assert status["default"]["options"]["keep"] == 1.0
        assert status["cache"]["max_bytes"] == 1 << 20
        assert "kprune_target_tokens" in status["request_options"]
    assert given["min_tokens"] == 0
    assert given["break_even"] is None
    found = measured["break_even"]
    assert found["prefill_ms"]["per_token"] > 0
    assert found["tokens"] == measured["min_tokens"]
    assert found["tokens"] is None or found["tokens"] >= 64
