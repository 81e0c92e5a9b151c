"""The guard on live servers, original and pruned: only the languages that were asked for."""

import json
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
from openai import APIError, BadRequestError
from support.live_client import client, complete
from tokenizers import Tokenizer

from vllm_kprune.checkpoint.manifest import is_overlay
from vllm_kprune.demo.servers import VllmServer
from vllm_kprune.guard.characters import allowed_characters
from vllm_kprune.guard.policy import GuardPolicy

pytestmark = pytest.mark.server

KOREAN = {"kprune_languages": "ko,en"}
ALLOWED = allowed_characters(GuardPolicy(languages=("en", "ko")))
PROMPTS = ("대한민국의 수도는", "오늘 저녁에는 친구와 함께", "The capital of South Korea is")
# Few and short answers: each step of a batch of these takes half a second of two CPUs.
HOT = {"temperature": 1.5, "top_p": 1.0, "max_tokens": 20}
CHAT_TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:"
# Its only values are Chinese: no token is left for one of them.
CHINESE = {"type": "object", "properties": {"a": {"enum": ["中国", "上海"]}}, "required": ["a"]}


# The pruned server alone: the original would repeat the test, at twice the cost of a step.
PRUNED = pytest.mark.parametrize(
    "server", [pytest.param("original", marks=pytest.mark.exhaustive), "pruned"], indirect=True
)


@pytest.fixture(params=["original", "pruned"])
def server(request: pytest.FixtureRequest) -> VllmServer:
    """Each of the two servers."""
    found: VllmServer = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def tokenizer(server: VllmServer) -> Tokenizer:
    return Tokenizer.from_file(str(Path(server.model) / "tokenizer.json"))


def foreign(text: str) -> set[str]:
    """Characters that the guard must not let pass; a cut-off last one is no character."""
    return {character for character in text.removesuffix("\ufffd") if not ALLOWED[ord(character)]}


def metric(server: VllmServer, name: str, languages: str = "en+ko") -> float:
    with urlopen(f"{server.url}/metrics", timeout=30) as response:
        text = response.read().decode()
    wanted = f'kprune_guard_{name}_total{{languages="{languages}"'
    return float(next((line.split()[-1] for line in text.splitlines() if wanted in line), 0.0))


def test_hot_sampling_stays_in_its_scripts_and_does_not_without_the_guard(
    server: VllmServer,
) -> None:
    guarded = complete(server, list(PROMPTS), n=5, seed=1, vllm_xargs=KOREAN, **HOT)
    assert len(guarded.choices) == 15
    assert set().union(*(foreign(choice.text) for choice in guarded.choices)) == set()
    free = complete(server, list(PROMPTS), n=5, seed=1, **HOT)
    slipped = any(foreign(choice.text) for choice in free.choices)
    assert slipped or is_overlay(server.model)  # which has few tokens left to slip with


@PRUNED
def test_a_stream_has_the_same_characters_as_the_whole(server: VllmServer) -> None:
    request: dict[str, Any] = {"model": server.model, "prompt": PROMPTS[0], "seed": 3, **HOT}
    extra = {"vllm_xargs": KOREAN}
    with client(server) as api:
        with api.completions.create(**request, stream=True, extra_body=extra) as stream:
            pieces = [chunk.choices[0].text for chunk in stream]
        whole = api.completions.create(**request, extra_body=extra).choices[0].text
    assert "".join(pieces) == whole
    assert foreign(whole) == set()


def test_greedy_answers_that_stay_in_their_scripts_are_the_same_with_the_guard(
    server: VllmServer,
) -> None:
    prompts = [*PROMPTS, "def fibonacci(n):\n    ", "Once upon a time", "서울의 날씨는 오늘"]
    free = complete(server, prompts, max_tokens=24)
    texts = [choice.text for choice in free.choices]
    assert [foreign(text) for text in texts] == [set()] * len(prompts)
    guarded = complete(server, prompts, max_tokens=24, vllm_xargs=KOREAN)
    assert [choice.text for choice in guarded.choices] == texts


@PRUNED
def test_log_probabilities_show_only_what_is_left(server: VllmServer, tokenizer: Tokenizer) -> None:
    options = {"logprobs": 5, "return_tokens_as_token_ids": True, "vllm_xargs": KOREAN, "seed": 5}
    choice = complete(server, "日本の首都は", **HOT, **options).choices[0]
    for best in choice.logprobs.top_logprobs:
        names = (name.removeprefix("token_id:") for name, value in best.items() if value > -1e4)
        for token_id in map(int, names):
            assert foreign(tokenizer.decode([token_id], skip_special_tokens=True)) == set()


def test_requests_of_one_batch_keep_their_own_guards(server: VllmServer) -> None:
    from concurrent.futures import ThreadPoolExecutor

    request_options = [KOREAN, {"kprune_languages": "off"}, {"kprune_scripts": "Hangul"}, None] * 2

    def ask(options: Any) -> str:
        xargs = {"vllm_xargs": options} if options else {}
        answer = complete(server, "日本の首都は東京です。", n=2, seed=2, **HOT, **xargs)
        return "".join(choice.text for choice in answer.choices)

    with ThreadPoolExecutor(len(request_options)) as pool:
        texts = list(pool.map(ask, request_options))
    for options, text in zip(request_options, texts, strict=True):
        text = text.replace("\ufffd", "")  # of answers that were cut off
        if options in (None, request_options[1]):
            assert foreign(text) or is_overlay(server.model)
        else:
            assert foreign(text) == set()
        if options == request_options[2]:
            assert not any(c.isascii() and c.isalpha() for c in text)


@PRUNED
def test_a_prompt_that_ends_inside_a_character_is_finished_or_answered(
    server: VllmServer, tokenizer: Tokenizer
) -> None:
    ids = tokenizer.encode("대한민국의 수도는 ").ids
    begun = [tokenizer.token_to_id(f"<0x{byte:02X}>") for byte in "서".encode()[:2]]
    options = {"return_token_ids": True, "vllm_xargs": KOREAN, "n": 4, "seed": 4}
    answer = complete(server, [*ids, *begun], **HOT, **options)
    for choice in answer.choices:
        added = choice.model_extra["token_ids"]
        text = tokenizer.decode([*ids, *begun, *added], skip_special_tokens=True)
        assert foreign(text) == set()
        assert tokenizer.decode([*begun, added[0]]) in {chr(c) for c in range(0xC100, 0xC180)}


@PRUNED
def test_a_json_schema_and_the_guard_hold_together(server: VllmServer) -> None:
    schema = {
        "type": "object",
        "properties": {
            "수도": {"enum": ["서울", "東京"]},
            "note": {"type": "string", "maxLength": 12},
        },
        "required": ["수도", "note"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
    options = {"response_format": form, "vllm_xargs": KOREAN, "n": 3, "seed": 6}
    answer = complete(server, "日本の首都は", **{**HOT, "max_tokens": 200}, **options)
    for choice in answer.choices:
        assert choice.finish_reason == "stop"
        value = json.loads(choice.text)
        assert value["수도"] == "서울"  # of the two, the one that the guard leaves
        assert foreign(value["note"]) == set()


@pytest.mark.parametrize("stream", [False, True])
def test_a_grammar_that_leaves_no_token_is_an_error_that_says_so(
    server: VllmServer, stream: bool
) -> None:
    before = metric(server, "dead_ends")
    form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": CHINESE}}
    extra = {"response_format": form, "vllm_xargs": KOREAN}
    with (
        client(server) as api,
        pytest.raises(APIError, match="no token was left that both the request's grammar"),
    ):
        list(
            api.completions.create(
                model=server.model, prompt=PROMPTS[0], stream=stream, extra_body=extra
            )
        )
    assert metric(server, "dead_ends") == before + 1
    assert complete(server, PROMPTS[0], vllm_xargs=KOREAN).choices[0].text


def test_allowed_tokens_that_are_all_refused_end_the_answer(
    server: VllmServer, tokenizer: Tokenizer
) -> None:
    refused = tokenizer.encode("ก", add_special_tokens=False).ids[-1:]
    answer = complete(server, PROMPTS[0], allowed_token_ids=refused, vllm_xargs=KOREAN)
    assert answer.choices[0].finish_reason == "stop"
    assert answer.choices[0].text == ""


def test_a_dead_end_is_one_end_though_the_request_ignores_ends(
    server: VllmServer, tokenizer: Tokenizer
) -> None:
    before = metric(server, "dead_ends")
    refused = tokenizer.encode("ก", add_special_tokens=False).ids[-1:]
    asked = {"allowed_token_ids": refused, "ignore_eos": True, "vllm_xargs": KOREAN}
    answer = complete(server, PROMPTS[0], max_tokens=10, **asked)
    assert answer.choices[0].finish_reason == "stop"
    assert metric(server, "dead_ends") == before + 1


SHORT_TEXT = {"type": "object", "properties": {"a": {"type": "string", "maxLength": 3}},
              "required": ["a"]}  # fmt: skip
# A document whose one character is a line end, or Chinese.
ESCAPED = r'\{"a":"\\(u4e[0-9a-f]{2}|n)"\}'


@PRUNED
def test_answers_that_are_json_hold_no_other_script_after_they_are_parsed(
    server: VllmServer, tokenizer: Tokenizer
) -> None:
    def parsed(token: str, asked: dict[str, Any], **xargs: str) -> list[str]:
        """With a bias, so that the model writes this token wherever it may."""
        bias = {str(tokenizer.token_to_id(token)): 30}
        how = {"n": 4, "temperature": 1.5, "max_tokens": 40, "logit_bias": bias, **asked}
        answer = complete(server, PROMPTS[0], vllm_xargs={**KOREAN, **xargs}, **how)
        assert {choice.finish_reason for choice in answer.choices} == {"stop"}
        return [json.loads(choice.text)["a"] for choice in answer.choices]

    schema = {"type": "json_schema", "json_schema": {"name": "answer", "schema": SHORT_TEXT}}
    assert set().union(*map(foreign, parsed("\\", {"response_format": schema}))) == set()
    document = {"structured_outputs": {"regex": ESCAPED}}
    assert parsed("u", document, kprune_escapes="json") == ["\n"] * 4
    # Nothing shows that a regular expression describes JSON.
    assert all(foreign(text) for text in parsed("u", document))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kprune_languages": "kr"}, "unknown 'kr'; did you mean 'ko'"),
        ({"kprune_languages": ""}, "kprune_languages: got none, expected names with commas"),
        ({"kprune_languages": ["ko"] * 99}, "at most 16"),
        ({"kprune_languages": 3}, "expected names"),
        ({"kprune_scripts": "Hangl"}, "did you mean 'Hangul'"),
        ({"kprune_hanja": "all"}, "languages"),  # this server has no default
        ({"kprune_lang": "ko"}, "unknown option 'kprune_lang'"),
    ],
)
def test_a_bad_option_is_a_client_error_that_names_what_is_allowed(
    original: VllmServer, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(BadRequestError) as error:
        complete(original, PROMPTS[0], vllm_xargs=options)
    assert message in str(error.value)


def test_a_beam_search_is_not_left_unguarded_without_a_word(original: VllmServer) -> None:
    beams = {"use_beam_search": True, "n": 2, "max_tokens": 4}
    with pytest.raises(BadRequestError, match="vLLM passes no options to beam searches"):
        complete(original, PROMPTS[0], vllm_xargs=KOREAN, **beams)
    assert len(complete(original, PROMPTS[0], **beams).choices) == 2


@PRUNED
def test_chat_is_guarded(server: VllmServer) -> None:
    with client(server) as api:
        answer = api.chat.completions.create(
            model=server.model,
            messages=[{"role": "user", "content": "日本の首都は?"}],
            extra_body={"chat_template": CHAT_TEMPLATE, "vllm_xargs": KOREAN},
            n=4,
            seed=7,
            **HOT,
        )
    assert set().union(*(foreign(c.message.content or "") for c in answer.choices)) == set()


def test_metrics_count_guarded_requests_and_changed_steps(server: VllmServer) -> None:
    requests, changed = metric(server, "requests"), metric(server, "changed_steps")
    complete(server, "日本の首都は東京です。大阪は", vllm_xargs=KOREAN, n=2, seed=1, **HOT)
    complete(server, "日本の首都は東京です。大阪は", **HOT)
    assert metric(server, "requests") == requests + 2
    assert metric(server, "changed_steps") > changed


def test_kprune_tells_the_guards_defaults(server: VllmServer) -> None:
    with urlopen(f"{server.url}/kprune", timeout=30) as response:
        guard = json.loads(response.read())["guard"]
    assert guard["available"] is True
    assert guard["default"] is None
    assert guard["fixed"] is False
    assert "kprune_languages" in guard["request_options"]
