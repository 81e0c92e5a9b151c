"""The pruned model through vLLM's OpenAI API: every feature works with the pruned ids."""

import json
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest
from openai import BadRequestError
from support.live_client import client, complete, float32_error, greedy_steps, model_name
from tokenizers import Tokenizer

from vllm_kprune.checkpoint.manifest import load_manifest
from vllm_kprune.demo.servers import VllmServer

pytestmark = pytest.mark.server

PROMPT = "대한민국의 수도는 Seoul이고"
CHAT_TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:"


@pytest.fixture(scope="module")
def tokenizer(overlay: Path) -> Tokenizer:
    """The pruned tokenizer."""
    return Tokenizer.from_file(str(overlay / "tokenizer.json"))


def call(server: VllmServer, path: str, body: Any = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = Request(server.url + path, data, {"Content-Type": "application/json"})
    with urlopen(request, timeout=60) as response:
        return json.loads(response.read())


def test_models_answer_under_the_name_they_were_given(
    original: VllmServer, pruned: VllmServer, reference_model: Path, overlay: Path
) -> None:
    assert model_name(original) == str(reference_model)
    assert model_name(pruned) == str(overlay)


def test_kprune_reports_what_is_served(
    original: VllmServer, pruned: VllmServer, overlay: Path
) -> None:
    manifest = load_manifest(overlay)
    status = call(pruned, "/kprune")
    assert status["active"] is True
    assert status["profile"]["name"] == "enko"
    assert status["fingerprint"] == manifest.fingerprint
    assert status["rows"] == {"original": 262144, "kept": len(manifest.kept_rows)}
    assert call(original, "/kprune")["active"] is False


def test_tokenize_and_detokenize_use_pruned_ids(pruned: VllmServer, tokenizer: Tokenizer) -> None:
    answer = call(pruned, "/tokenize", {"prompt": PROMPT})
    assert answer["tokens"] == tokenizer.encode(PROMPT).ids
    text = call(pruned, "/detokenize", {"tokens": answer["tokens"][1:]})["prompt"]
    assert text == PROMPT


def test_a_prompt_as_token_ids_is_the_prompt_as_text(
    pruned: VllmServer, tokenizer: Tokenizer
) -> None:
    as_text = complete(pruned, PROMPT)
    as_ids = complete(pruned, tokenizer.encode(PROMPT).ids)
    assert as_ids.choices[0].text == as_text.choices[0].text
    assert as_ids.usage == as_text.usage


def test_streaming_gives_the_same_text(pruned: VllmServer) -> None:
    request = {"model": pruned.model, "prompt": PROMPT, "max_tokens": 16, "temperature": 0}
    with client(pruned) as api, api.completions.create(**request, stream=True) as stream:
        pieces = [chunk.choices[0].text for chunk in stream]
    assert len(pieces) > 1
    assert "".join(pieces) == complete(pruned, PROMPT).choices[0].text


def test_logits_are_those_of_the_original(
    original: VllmServer, pruned: VllmServer, tokenizer: Tokenizer, overlay: Path
) -> None:
    kept = load_manifest(overlay).kept_rows
    ids = tokenizer.encode(PROMPT).ids
    (expected,) = greedy_steps(original, [kept[i] for i in ids], 1, allowed=kept)
    (found,) = greedy_steps(pruned, ids, 1)
    mapped = {kept[token]: value for token, value in found.best.items()}
    assert mapped.keys() == expected.best.keys()
    for token, value in expected.best.items():
        assert abs(mapped[token] - value) <= float32_error(expected.highest)


def test_several_answers_can_be_asked_for(pruned: VllmServer) -> None:
    answer = complete(pruned, PROMPT, n=3, temperature=1.0, seed=7)
    assert len({choice.text for choice in answer.choices}) > 1
    assert [choice.index for choice in answer.choices] == [0, 1, 2]


def test_a_stop_string_ends_the_answer(pruned: VllmServer) -> None:
    whole = complete(pruned, "1, 2, 3, 4,").choices[0].text
    stop = whole.strip().split(",")[1]
    stopped = complete(pruned, "1, 2, 3, 4,", stop=[stop]).choices[0]
    assert stopped.finish_reason == "stop"
    assert stopped.text == whole[: whole.index(stop)]


def test_a_json_schema_is_followed(pruned: VllmServer) -> None:
    schema = {
        "type": "object",
        "properties": {"수도": {"enum": ["서울", "부산"]}, "capital": {"type": "boolean"}},
        "required": ["수도", "capital"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
    choice = complete(pruned, PROMPT, max_tokens=200, response_format=form).choices[0]
    assert choice.finish_reason == "stop"
    value = json.loads(choice.text)
    assert value["수도"] in ("서울", "부산")
    assert isinstance(value["capital"], bool)


def test_allowed_token_ids_are_pruned_ids(pruned: VllmServer, tokenizer: Tokenizer) -> None:
    allowed = tokenizer.encode("서울", add_special_tokens=False).ids[:1]
    allowed += tokenizer.encode("부산", add_special_tokens=False).ids[:1]
    steps = greedy_steps(pruned, tokenizer.encode(PROMPT).ids, 8, allowed=allowed)
    assert {step.token for step in steps} <= set(allowed)


def test_logit_bias_is_given_in_pruned_ids(pruned: VllmServer, tokenizer: Tokenizer) -> None:
    (token,) = tokenizer.encode("가", add_special_tokens=False).ids
    answer = complete(pruned, PROMPT, max_tokens=4, logit_bias={str(token): 100})
    assert answer.choices[0].text == "가" * 4


def test_an_id_past_the_pruned_vocabulary_is_a_client_error(pruned: VllmServer) -> None:
    with pytest.raises(BadRequestError, match="allowed_token_ids"):
        complete(pruned, PROMPT, allowed_token_ids=[262_000])
    with pytest.raises(BadRequestError, match="vocab"):
        complete(pruned, [262_000])


def test_chat_works_with_a_template(pruned: VllmServer) -> None:
    with client(pruned) as api:
        answer = api.chat.completions.create(
            model=pruned.model,
            messages=[{"role": "user", "content": "안녕하세요? 1, 2, 3"}],
            max_tokens=8,
            extra_body={"chat_template": CHAT_TEMPLATE},
        )
    assert answer.usage is not None
    assert answer.usage.completion_tokens > 0
