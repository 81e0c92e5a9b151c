"""Tokens are spelled as the tokenizer's own decoder spells them."""

from conftest import Vocabulary

from vllm_kprune.guard.tokens import PRESENT


def test_every_token_is_spelled_as_its_tokenizer_decodes_it(vocabulary: Vocabulary) -> None:
    spellings = vocabulary.spellings
    ids = [i for i in range(spellings.num_tokens) if spellings.flags[i] & PRESENT]
    decoded = vocabulary.tokenizer.decode_batch([[i] for i in ids], skip_special_tokens=False)
    wrong = [
        i
        for i, text in zip(ids, decoded, strict=True)
        if spellings.bytes_of(i).decode(errors="replace") != text
    ]
    assert wrong == []
