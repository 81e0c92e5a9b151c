"""A small model and a plan for it, cheap enough to make for each test."""

from pathlib import Path

import pytest
from support.tiny_exports import save_sharded
from support.tiny_folders import KOREAN, save_model
from support.tiny_tokenizers import TINY

from vllm_kprune.checkpoint.plan import Plan, make_plan
from vllm_kprune.profile import Profile

PROFILE = Profile(name="tiny", languages=("ko",), genres=(), coverage=0.9)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model with a float32 embedding and head in one file, and rows past the tokenizer."""
    return save_model(tmp_path / "model")


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    """Three bfloat16 shards: embedding and a layer, layers alone, head alone."""
    return save_sharded(tmp_path / "sharded")


@pytest.fixture(params=sorted(TINY))
def tiny_model(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A small model folder, with each kind of tokenizer."""
    return save_model(tmp_path / "model", request.param)


@pytest.fixture
def small_profile(monkeypatch: pytest.MonkeyPatch) -> Profile:
    """Korean, on the user's corpus alone: the word list is left out to save time."""
    monkeypatch.setattr("vllm_kprune.checkpoint.plan.profile_sources", _corpora_only)
    return PROFILE


def _corpora_only(profile: Profile, corpora: list[Path]) -> list[object]:
    from vllm_kprune.vocabulary.evidence import profile_sources

    return list(profile_sources(Profile(name="x", languages=("th",), genres=()), corpora))


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """A few lines of Korean and English."""
    path = tmp_path / "corpus.txt"
    path.write_text(KOREAN, encoding="utf-8")
    return path


@pytest.fixture
def plan(tiny_model: Path, small_profile: Profile, corpus: Path) -> Plan:
    """What the small profile keeps of the small model."""
    return make_plan(str(tiny_model), small_profile, corpora=[corpus])
