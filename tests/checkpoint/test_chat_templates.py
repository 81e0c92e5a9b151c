"""A conversation is rendered and tokenised to the same tokens by an overlay's chat template.

By transformers, as vLLM does it: the template of a small model and the published ones, with tools
where the template has them.
"""

from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
from support.tiny_architectures import ARCHITECTURES
from support.tiny_folders import read, save_weights, write_json

from vllm_kprune.checkpoint.manifest import load_manifest
from vllm_kprune.checkpoint.overlay import build_overlay
from vllm_kprune.profile import Profile

PROFILE = Profile(name="tiny", languages=("th",), code=False)
CONVERSATION = [
    {"role": "user", "content": "the weather in Seoul"},
    {"role": "assistant", "content": "สวัสดีครับ ประเทศไทย"},
    {"role": "user", "content": "the weather is fine"},
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
CLASSES = {
    "qwen3": "Qwen3ForCausalLM",
    "llama3_1": "LlamaForCausalLM",
    "gemma3": "Gemma3ForCausalLM",
    "aya_expanse": "CohereForCausalLM",
}
MODEL_TYPES = {
    "CohereForCausalLM": "cohere",
    "Gemma3ForCausalLM": "gemma3_text",
    "LlamaForCausalLM": "llama",
    "Qwen3ForCausalLM": "qwen3",
}


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


def rendered(folder: Path, **options: Any) -> tuple[str, list[int]]:
    tokenizer = tokenizer_of(folder)
    options["add_generation_prompt"] = True
    text = tokenizer.apply_chat_template(CONVERSATION, tokenize=False, **options)
    ids = tokenizer.apply_chat_template(CONVERSATION, return_dict=False, **options)
    return text, ids


def assert_same_conversation(original: Path, overlay: Path, **options: Any) -> str:
    text, before = rendered(original, **options)
    pruned_text, after = rendered(overlay, **options)
    assert pruned_text == text
    kept = load_manifest(overlay).kept_ids
    assert len(kept) < 0.9 * load_manifest(overlay).original_tokens
    assert [kept[i] for i in after] == before
    return text


@pytest.mark.parametrize("name", ["llama-3.2", "gemma3-multimodal"])
@pytest.mark.parametrize("tools", [None, TOOLS])
def test_a_small_template_gives_the_same_tokens(name: str, tools: Any, tmp_path: Path) -> None:
    original = ARCHITECTURES[name].save(tmp_path / "original")
    texts = [rendered(original, tools=t)[0] for t in (None, TOOLS)]
    overlay = prune(original, *texts)
    text = assert_same_conversation(original, overlay, tools=tools)
    assert ("properties" in text) is (tools is not None)


@pytest.fixture(params=CLASSES)
def published(
    request: pytest.FixtureRequest, published_tokenizer: Callable[[str], Path], tmp_path: Path
) -> Iterator[Path]:
    """A published tokenizer with its chat template, in a folder with a small random embedding."""
    architecture = CLASSES[request.param]
    package = published_tokenizer(request.param)
    folder = tmp_path / "original"
    folder.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((package.parent / name).read_bytes())
    model = read(folder / "tokenizer.json")
    rows = 1 + max(*model["model"]["vocab"].values(), *(t["id"] for t in model["added_tokens"]))
    save_weights(folder, rows)
    write_json(
        folder / "config.json",
        {"architectures": [architecture], "model_type": MODEL_TYPES[architecture]},
    )
    yield folder
    tokenizer_of.cache_clear()


@pytest.mark.slow
def test_a_published_template_gives_the_same_tokens(published: Path) -> None:
    template = str(read(published / "tokenizer_config.json")["chat_template"])
    tools = COHERE_TOOLS if "parameter_definitions" in template else TOOLS
    cases = [{}, {"tools": tools}] if "tools" in template else [{}]
    overlay = prune(published, *(rendered(published, **case)[0] for case in cases))
    for case in cases:
        text = assert_same_conversation(published, overlay, **case)
        assert ("the weather in Seoul is fine" in text) is bool(case)
