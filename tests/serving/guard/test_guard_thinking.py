"""A live server whose model thinks: its reasoning is free or has languages of its own."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
from openai import BadRequestError
from support.live_client import client, complete
from support.tiny_models import ENVIRONMENT, SERVE

from vllm_kprune.demo.servers import VllmServer
from vllm_kprune.guard.characters import allowed_characters
from vllm_kprune.guard.policy import GuardPolicy

pytestmark = [pytest.mark.server, pytest.mark.slow]

# The prompt opens the reasoning, as those of many models do.
TEMPLATE = """\
{%- for m in messages %}<|im_start|>{{ m.role }}
{{ m.content }}<|im_end|>
{% endfor %}<|im_start|>assistant
<think>
"""
HANGUL = {"kprune_scripts": "Hangul"}
HANGUL_ONLY = allowed_characters(GuardPolicy(scripts=("Hangul",)))
# Every language has ASCII letters, which are most of what this model writes.
GREEK = allowed_characters(GuardPolicy(languages=("el",), punctuation=False))
GREEK_AND_MARKS = allowed_characters(GuardPolicy(languages=("el",)))
# A model that was not trained to think does not stop by itself: vLLM ends its reasoning.
REQUESTS, ANSWERS, BUDGET = 2, 6, 10


@pytest.fixture(scope="module")
def thinking_model(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2 with two of its special tokens renamed, and not flagged: as Qwen3 has them."""
    folder = tmp_path_factory.mktemp("thinking") / "model"
    folder.mkdir()
    for file in smollm2.iterdir():
        if file.suffix == ".json":
            text = file.read_text(encoding="utf-8")
            text = text.replace("<issue_start>", "<think>").replace("<issue_closed>", "</think>")
            (folder / file.name).write_text(text, encoding="utf-8")
        elif file.suffix == ".safetensors":
            (folder / file.name).symlink_to(file)
    _unflag(folder / "tokenizer.json")
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


def _unflag(path: Path) -> None:
    import json

    tokenizer = json.loads(path.read_text(encoding="utf-8"))
    for token in tokenizer["added_tokens"]:
        token["special"] = token["special"] and "think" not in token["content"]
    path.write_text(json.dumps(tokenizer), encoding="utf-8")


@pytest.fixture(scope="module")
def server(thinking_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[VllmServer]:
    """One server with a parser of reasoning; its guard is for requests to ask."""
    arguments = [*SERVE, "--dtype", "float32", "--reasoning-parser", "deepseek_r1"]
    log = tmp_path_factory.mktemp("thinking-log") / "server.log"
    running = VllmServer(thinking_model, arguments, environment=ENVIRONMENT, log=log)
    with running:
        yield running


def ask(server: VllmServer, xargs: dict[str, Any], n: int, seed: int = 0) -> list[tuple[str, str]]:
    """(reasoning, answer) of n answers."""
    with client(server) as api:
        answer = api.chat.completions.create(
            model=server.model,
            messages=[{"role": "user", "content": "What is the capital of Korea?"}],
            temperature=1.5,
            max_tokens=2 * BUDGET,
            n=n,
            seed=seed,
            extra_body={"vllm_xargs": xargs, "thinking_token_budget": BUDGET},
        )
    messages = [choice.message for choice in answer.choices]
    return [(m.model_extra.get("reasoning") or "", m.content or "") for m in messages]


def foreign(texts: list[str], allowed: Any) -> set[str]:
    """Characters that are not allowed; � at an end is a character that was cut off."""
    return {c for text in texts for c in text.rstrip("\ufffd") if not allowed[ord(c)]}


def metric(server: VllmServer, line: str) -> float:
    with urlopen(f"{server.url}/metrics", timeout=30) as response:
        lines = response.read().decode().splitlines()
    return float(next((one.split()[-1] for one in lines if one.startswith(line)), 0.0))


def test_reasoning_is_free_and_the_answer_is_guarded(server: VllmServer) -> None:
    both = [one for seed in range(REQUESTS) for one in ask(server, HANGUL, ANSWERS, seed)]
    reasoning, answers = map(list, zip(*both, strict=True))
    assert len(answers) == REQUESTS * ANSWERS
    english = [any(c.isascii() and c.isalpha() for c in text) for text in reasoning]
    assert sum(english) > 0.8 * len(english)  # reasoning may end at once, too
    assert sum(map(bool, answers)) > len(answers) / 2  # an answer may end at once
    assert foreign(answers, HANGUL_ONLY) == set()
    counted = 'kprune_guard_changed_steps_total{languages="Hangul",phase="answer"}'
    # The model would go on in English at almost every step of its answers, and only there.
    assert 0 < metric(server, counted) <= len(answers) * BUDGET
    assert metric(server, 'kprune_guard_requests_total{languages="Hangul"}') == len(answers)


def test_reasoning_can_have_languages_of_its_own(server: VllmServer) -> None:
    asked = {**HANGUL, "kprune_think_languages": "el", "kprune_punctuation": 0}
    both = ask(server, asked, ANSWERS)
    reasoning, answers = map(list, zip(*both, strict=True))
    assert foreign(reasoning, GREEK) == set()
    assert any(reasoning)
    assert foreign(answers, HANGUL_ONLY) == set()
    counted = 'kprune_guard_changed_steps_total{languages="el",phase="reasoning"}'
    assert metric(server, counted) > 0


def test_reasoning_alone_can_be_guarded(server: VllmServer) -> None:
    asked = {"kprune_languages": "off", "kprune_think_languages": "el"}
    reasoning, answers = map(list, zip(*ask(server, asked, ANSWERS), strict=True))
    assert foreign(reasoning, GREEK_AND_MARKS) == set()
    assert any(c.isascii() and c.isalpha() for text in answers for c in text)


def test_a_completion_that_never_thinks_is_guarded_from_the_start(server: VllmServer) -> None:
    found = complete(server, "Seoul is", n=4, temperature=1.5, vllm_xargs=HANGUL)
    assert foreign([choice.text for choice in found.choices], HANGUL_ONLY) == set()


def test_an_unknown_language_of_reasoning_is_a_400(server: VllmServer) -> None:
    with pytest.raises(BadRequestError, match="kprune_think_languages: unknown 'kx'"):
        ask(server, {"kprune_think_languages": "kx"}, 1)
