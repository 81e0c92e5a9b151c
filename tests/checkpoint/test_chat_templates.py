"""A conversation is rendered and tokenised to the same tokens by an overlay's chat template.

By transformers, as vLLM does it: the template of a small model and the published ones, with tools
where the template has them.
"""

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
from support.published import PRUNED
from support.tiny_architectures import ARCHITECTURES
from support.tiny_folders import read

from vllm_kprune.checkpoint.manifest import load_manifest
from vllm_kprune.checkpoint.overlay import build_overlay
from vllm_kprune.profile import Profile

pytestmark = pytest.mark.slow

PROFILE = Profile(name="tiny", languages=("th",), genres=(), coverage=0.9999)
CONVERSATION = [
    {"role": "user", "content": "the weather in Seoul"},
    {"role": "assistant", "content": "สวัสดีครับ ประเทศไทย"},
    {"role": "user", "content": "the weather is fine"},
]
# Every shipped profile keeps its tokens.
COVERED = [
    {"role": "user", "content": "What is the weather in Seoul?"},
    {"role": "assistant", "content": "The weather is good today."},
    {"role": "user", "content": "Thank you."},
]
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "the weather in Seoul is fine",
            "parameters": {"type": "object", "properties": {"day": {"type": "string"}}},
        },
    }
]
# Aya's template was written for Cohere's own form of tools.
COHERE_TOOLS = [
    {
        "name": "weather",
        "description": "the weather in Seoul is fine",
        "parameter_definitions": {"day": {"type": "str", "description": "day", "required": True}},
    }
]


def prune(folder: Path, *lines: str) -> Path:
    """An overlay of `folder` that keeps all tokens of the given text."""
    corpus = folder.parent / "corpus.txt"
    corpus.write_text("\n".join(lines), encoding="utf-8")
    build_overlay(str(folder), PROFILE, folder.parent / "pruned", corpora=[corpus])
    return folder.parent / "pruned"


@lru_cache(maxsize=2)  # an original and its overlay; a published one takes 400 MB
def tokenizer_of(folder: Path) -> Any:
    """A folder's tokenizer as transformers reads it, which takes seconds for a published one."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def rendered(folder: Path, conversation: Any, **options: Any) -> tuple[str, list[int]]:
    tokenizer = tokenizer_of(folder)
    options["add_generation_prompt"] = True
    text = tokenizer.apply_chat_template(conversation, tokenize=False, **options)
    ids = tokenizer.apply_chat_template(conversation, return_dict=False, **options)
    return text, ids


def assert_same_conversation(
    original: Path, overlay: Path, conversation: Any, **options: Any
) -> str:
    text, before = rendered(original, conversation, **options)
    pruned_text, after = rendered(overlay, conversation, **options)
    assert pruned_text == text
    kept = load_manifest(overlay).kept_ids
    assert len(kept) < 0.9 * load_manifest(overlay).original_tokens
    assert [kept[i] for i in after] == before
    return text


@pytest.mark.parametrize("name", ["llama-3.2", "gemma3-multimodal"])
@pytest.mark.parametrize("tools", [None, TOOLS])
def test_a_small_template_gives_the_same_tokens(name: str, tools: Any, tmp_path: Path) -> None:
    original = ARCHITECTURES[name].save(tmp_path / "original")
    texts = [rendered(original, CONVERSATION, tools=t)[0] for t in (None, TOOLS)]
    overlay = prune(original, *texts)
    text = assert_same_conversation(original, overlay, CONVERSATION, tools=tools)
    assert ("properties" in text) is (tools is not None)


@pytest.fixture
def published(pruned_tokenizers: dict[str, Path]) -> Iterator[dict[str, Path]]:
    """Published tokenizers with their chat templates, pruned with a shipped profile."""
    yield pruned_tokenizers
    tokenizer_of.cache_clear()


@pytest.mark.parametrize("name", PRUNED)
def test_a_published_template_gives_the_same_tokens(name: str, published: dict[str, Path]) -> None:
    original = load_manifest(published[name]).check_base()
    template = str(read(original / "tokenizer_config.json")["chat_template"])
    tools = COHERE_TOOLS if "parameter_definitions" in template else TOOLS
    for case in [{}, {"tools": tools}] if "tools" in template else [{}]:
        text = assert_same_conversation(original, published[name], COVERED, **case)
        assert ("the weather in Seoul is fine" in text) is bool(case)
