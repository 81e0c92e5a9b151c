"""Spellings of real tokenizers, made once."""

from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from vllm_kprune.guard.spelling import Spellings, load_spellings

# Width of the logits: Qwen3's embedding has rows past its tokenizer, Gemma-3's lacks a token's.
NUM_ROWS = {"gemma3": 262_144, "qwen3": 151_936, "llama3_1": 128_256}


class Vocabulary:
    """A published tokenizer and its spellings."""

    def __init__(self, name: str, path: Path) -> None:
        self.name = name
        self.num_rows = NUM_ROWS[name]
        self.tokenizer = Tokenizer.from_file(str(path))
        self.spellings: Spellings = load_spellings(path.parent, None)


@pytest.fixture(scope="session", params=sorted(NUM_ROWS))
def vocabulary(
    request: pytest.FixtureRequest, published_tokenizer: Callable[[str], Path]
) -> Vocabulary:
    """Each of the tokenizers."""
    return Vocabulary(request.param, published_tokenizer(request.param))
