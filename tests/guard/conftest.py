"""Real tokenizers with their spellings, one at a time."""

from collections.abc import Callable
from pathlib import Path

import pytest
from support.guard_oracle import NUM_ROWS, Vocabulary

from vllm_kprune.guard.spelling import load_spellings


@pytest.fixture(scope="session")
def load_vocabulary(published_tokenizer: Callable[[str], Path]) -> Callable[[str], Vocabulary]:
    """A function that gives a vocabulary by its name in `NUM_ROWS`.

    Only the last one is kept: with the automatons that tests ask of it, each is large.
    """
    loaded: dict[str, Vocabulary] = {}

    def load(name: str) -> Vocabulary:
        if name not in loaded:
            loaded.clear()
            path = published_tokenizer(name)
            loaded[name] = Vocabulary(name, path, load_spellings(path.parent, None))
        return loaded[name]

    return load


# Llama-3.1's is byte-level as Qwen3's is, and has neither rows past its tokens nor fewer.
EACH = [
    pytest.param(name, marks=pytest.mark.exhaustive if name == "llama3_1" else [])
    for name in sorted(NUM_ROWS)
]


@pytest.fixture(scope="session", params=EACH)
def vocabulary(
    request: pytest.FixtureRequest, load_vocabulary: Callable[[str], Vocabulary]
) -> Vocabulary:
    """Each of the tokenizers."""
    return load_vocabulary(request.param)
