"""Where texts can be cut: the tokens of a text are those of its parts, for every text."""

import json
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.prompt_cases import UNICODE
from support.tiny_tokenizers import TINY, byte_fallback_tokenizer, byte_level_tokenizer, data_of
from tokenizers import AddedToken, Regex, Tokenizer, models, pre_tokenizers
from tokenizers.pre_tokenizers import PreTokenizer

from vllm_kprune.prompt.part_encoder import PartEncoder
from vllm_kprune.tokenizer.seams import _SPLITS, parts_pattern

WORDS = st.lists(
    UNICODE | st.sampled_from(["the cat", " ", "12", "▁", "a> ", "▁a", "고 "]), max_size=9
)
TEXTS = WORDS.map(" ".join)


def found(tokenizer: Tokenizer, text: str) -> Sequence[object]:
    encoding = tokenizer.encode(text, add_special_tokens=False)
    return encoding.ids, [list(span) for span in encoding.offsets]


def with_pattern(pattern: str) -> Tokenizer:
    """The byte-level tokenizer with a pattern of a published one."""
    tokenizer = Tokenizer.from_str(byte_level_tokenizer().to_str())
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    split = pre_tokenizers.Split(Regex(pattern), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    return tokenizer


EACH = {
    **{name: make() for name, make in TINY.items()},
    **{f"pattern {n}": with_pattern(one) for n, one in enumerate(sorted(_SPLITS))},
}


@pytest.mark.parametrize("name", EACH)
@settings(max_examples=60, deadline=None)
@given(texts=st.lists(TEXTS, min_size=1, max_size=4))
def test_parts_have_the_tokens_of_the_text_whatever_was_read_before(
    name: str, texts: list[str]
) -> None:
    tokenizer = EACH[name]
    assert parts_pattern(tokenizer) is not None
    encoder = PartEncoder(tokenizer)
    for text in [*texts, *texts]:
        tokens = encoder.tokens(text)
        assert [tokens.ids.tolist(), tokens.offsets.tolist()] == list(found(tokenizer, text))
        assert encoder.count(text) == len(tokens.ids)


@given(TEXTS)
def test_parts_are_the_whole_text(text: str) -> None:
    pattern = parts_pattern(byte_level_tokenizer())
    assert pattern
    assert "".join(pattern.findall(text)) == text


def test_no_seam_is_after_a_character_that_a_token_has_before_a_blank() -> None:
    data = data_of(byte_fallback_tokenizer())
    data["model"]["vocab"]["e▁"] = len(data["model"]["vocab"]) + 50
    tokenizer = Tokenizer.from_str(json.dumps(data))
    pattern = parts_pattern(tokenizer)
    assert pattern
    assert pattern.findall("the cat sat")[:2] == ["the cat", " sat"]


def lstrip(tokenizer: Tokenizer) -> None:
    tokenizer.add_tokens([AddedToken("<left>", lstrip=True)])


def unknown_pattern(tokenizer: Tokenizer) -> None:
    split = pre_tokenizers.Split(Regex(r"\w+ \w+"), "isolated")
    steps: list[PreTokenizer] = [split, pre_tokenizers.ByteLevel(add_prefix_space=False)]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)


def prefix(tokenizer: Tokenizer) -> None:
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)


def no_bpe(tokenizer: Tokenizer) -> None:
    tokenizer.model = models.WordLevel({"a": 0}, unk_token="a")


@pytest.mark.parametrize("change", [lstrip, unknown_pattern, prefix, no_bpe])
def test_other_tokenizers_have_no_seams_and_encode_texts_whole(change) -> None:  # type: ignore[no-untyped-def]
    tokenizer = Tokenizer.from_str(byte_level_tokenizer().to_str())
    change(tokenizer)
    assert parts_pattern(tokenizer) is None
    text = "the cat <left> sat on the mat"
    assert PartEncoder(tokenizer).tokens(text).ids.tolist() == found(tokenizer, text)[0]
