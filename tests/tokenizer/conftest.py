"""The real tokenizer pruned with `enko`, and small ones pruned by hand."""

import json
from pathlib import Path

import pytest
from support.published import PRUNED
from support.tiny_tokenizers import TINY
from support.tokenizer_cases import Pair, pair_of

from vllm_kprune.checkpoint.manifest import load_manifest
from vllm_kprune.checkpoint.plan import Plan
from vllm_kprune.profile import Profile
from vllm_kprune.tokenizer.bpe import parse_tokenizer, read_tokenizer
from vllm_kprune.tokenizer.encoder import load_encoder
from vllm_kprune.vocabulary.sizing import select_tokens


@pytest.fixture(scope="module")
def gemma(enko_plan: Plan) -> Pair:
    """Gemma-3 and what `enko` keeps of it."""
    original = load_encoder(enko_plan.base.folder)
    return Pair(enko_plan.base.tokenizer, original, enko_plan.selection.kept_ids)


def _pair(kind: str) -> Pair:
    tokenizer = TINY[kind]()
    parsed = parse_tokenizer(json.loads(tokenizer.to_str()))
    profile = Profile(name="ko", languages=("ko",), genres=())
    selection = select_tokens(parsed, tokenizer, profile, [], frozenset({"<unused1>", "the"}))
    return pair_of(tokenizer, selection.kept_ids)


@pytest.fixture(scope="session", params=sorted(TINY))
def tiny(request: pytest.FixtureRequest) -> Pair:
    """A small tokenizer and its Korean part, with one reserved token and one English word."""
    return _pair(request.param)


@pytest.fixture(scope="module", params=PRUNED)
def published(request: pytest.FixtureRequest, pruned_tokenizers: dict[str, Path]) -> Pair:
    """A tokenizer that a maker published, and what a shipped profile keeps of it."""
    manifest = load_manifest(pruned_tokenizers[request.param])
    folder = manifest.check_base()
    return Pair(read_tokenizer(folder), load_encoder(folder), manifest.kept_ids)


@pytest.fixture(
    scope="module", params=[pytest.param("gemma", marks=pytest.mark.slow), *sorted(TINY)]
)
def pair(request: pytest.FixtureRequest) -> Pair:
    """Each tokenizer with its pruned form, the real one first."""
    if request.param == "gemma":
        found: Pair = request.getfixturevalue("gemma")
        return found
    return _pair(request.param)
