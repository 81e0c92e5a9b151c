"""Parts of texts that were encoded before: what is remembered, and how much."""

import pytest
from support.tiny_tokenizers import byte_level_tokenizer

from vllm_kprune.prompt.part_encoder import PartEncoder


def test_a_word_is_encoded_once() -> None:
    encoder = PartEncoder(byte_level_tokenizer())
    assert encoder.count("the cat sat. the cat sat.") == encoder.count("the cat sat. the cat sat.")
    assert set(encoder._known) == {"the", " cat", " sat.", " the"}


def test_the_cache_of_parts_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vllm_kprune.prompt.part_encoder._MOST_PARTS", 3)
    encoder, tokenizer = PartEncoder(byte_level_tokenizer()), byte_level_tokenizer()
    for text in (
        "the cat sat",
        "on the mat",
        "and the other",
        f"the cat {'x' * 41} sat",
        "the cat",
    ):
        wanted = tokenizer.encode(text, add_special_tokens=False).ids
        assert encoder.tokens(text).ids.tolist() == wanted
        assert len(encoder._known) <= 4
        assert not any("x" * 41 in part for part in encoder._known)
