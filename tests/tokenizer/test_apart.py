"""Texts that are encoded together have the ids that each has alone, whatever they contain."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.tiny_tokenizers import SENTENCES, TINY
from tokenizers import AddedToken, Tokenizer

from vllm_kprune.tokenizer.apart import ApartEncoder

MADE = {kind: TINY[kind]() for kind in sorted(TINY)}
PIECES = st.one_of(
    st.text(max_size=12),
    st.text(alphabet=" \n\t.a한1'▁Ġ<|>", max_size=8),
    st.sampled_from([*SENTENCES, "", "<bos>", "<|endoftext|>", "x</s>y"]),
)


def alone(tokenizer: Tokenizer, texts: list[str]) -> list[list[int]]:
    return [tokenizer.encode(text, add_special_tokens=False).ids for text in texts]


def together(encoder: ApartEncoder, texts: list[str]) -> list[list[int]]:
    ids, lengths = encoder.encode(texts)
    ends = lengths.cumsum().tolist()
    return [ids[end - n : end].tolist() for end, n in zip(ends, lengths.tolist(), strict=True)]


@pytest.mark.parametrize("kind", sorted(TINY))
@settings(max_examples=60, deadline=None)
@given(texts=st.lists(PIECES, max_size=150))
def test_each_text_has_the_ids_that_it_has_alone(kind: str, texts: list[str]) -> None:
    encoder = ApartEncoder.of(MADE[kind])
    assert together(encoder, texts) == alone(MADE[kind], texts)


@pytest.mark.parametrize("kind", sorted(TINY))
def test_a_special_token_keeps_texts_apart_and_may_stand_in_them(kind: str) -> None:
    tokenizer = Tokenizer.from_str(MADE[kind].to_str())
    tokenizer.add_special_tokens([AddedToken("<|apart|>", normalized=False, special=True)])
    encoder = ApartEncoder.of(tokenizer)
    assert encoder.separator is not None
    separator = encoder.separator[0]
    for texts in (["a", " b", "c\n"] * 100, ["a", f"{separator} b", f"c{separator}"], [separator]):
        assert together(encoder, texts) == alone(tokenizer, texts)


def test_a_special_token_that_takes_the_spaces_beside_it_is_not_chosen() -> None:
    tokenizer = Tokenizer.from_str(MADE["byte_level"].to_str())
    greedy = [AddedToken(f"<|{n}|>", lstrip=True, rstrip=True, special=True) for n in range(3)]
    tokenizer.add_special_tokens(greedy)
    encoder = ApartEncoder.of(tokenizer)
    assert encoder.separator is None or encoder.separator[0] not in {t.content for t in greedy}
    texts = ["a ", " b", " \n"] * 50
    assert together(encoder, texts) == alone(tokenizer, texts)
