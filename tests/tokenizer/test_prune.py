"""Every id in a `tokenizer.json` is mapped, or pruning is refused (law 6)."""

from typing import Any

import pytest
from support.tiny_tokenizers import byte_level_tokenizer, data_of

from vllm_kprune.errors import KPruneError
from vllm_kprune.tokenizer.bpe import parse_tokenizer
from vllm_kprune.tokenizer.prune import IdMap, prune_tokenizer
from vllm_kprune.tokenizer.reach import witness_texts


def test_new_ids_are_positions_in_the_kept_ids() -> None:
    ids = IdMap([3, 7, 8])
    assert (dict(ids), len(ids), 7 in ids, 4 in ids) == ({3: 0, 7: 1, 8: 2}, 3, True, False)
    assert ids.required(8, "config.json: eos_token_id") == 2
    with pytest.raises(KPruneError, match=r"config.json: eos_token_id refers to token id 4"):
        ids.required(4, "config.json: eos_token_id")


def _with(**parts: Any) -> dict[str, Any]:
    return data_of(byte_level_tokenizer()) | parts


@pytest.mark.parametrize("kind", ["BertProcessing", "RobertaProcessing"])
def test_ids_of_other_post_processors_are_mapped(kind: str) -> None:
    step = {"type": kind, "sep": ["</s>", 12], "cls": ["<s>", 10]}
    parsed = parse_tokenizer(_with(post_processor=step))
    pruned = prune_tokenizer(parsed, [10, 12])
    assert pruned["post_processor"] == {**step, "sep": ["</s>", 1], "cls": ["<s>", 0]}


def test_the_padding_id_is_mapped() -> None:
    parsed = parse_tokenizer(_with(padding={"pad_id": 12, "pad_token": "x"}, post_processor=None))
    assert prune_tokenizer(parsed, [10, 12])["padding"]["pad_id"] == 1
    with pytest.raises(KPruneError, match="padding refers to token id 12"):
        prune_tokenizer(parsed, [10, 11])


def test_a_post_processor_that_needs_a_dropped_token_is_refused() -> None:
    parsed = parse_tokenizer(data_of(byte_level_tokenizer()))
    with pytest.raises(KPruneError, match="TemplateProcessing refers to token id"):
        prune_tokenizer(parsed, [1, 2, 3])


def test_an_unknown_post_processor_is_refused() -> None:
    parsed = parse_tokenizer(_with(post_processor={"type": "Novel", "ids": [1]}))
    with pytest.raises(KPruneError, match="Novel is of an unknown kind"):
        prune_tokenizer(parsed, [1])


def test_pruning_changes_nothing_of_the_original() -> None:
    data = data_of(byte_level_tokenizer())
    parsed = parse_tokenizer(data)
    bos = byte_level_tokenizer().token_to_id("<bos>")
    prune_tokenizer(parsed, [5, bos])
    assert data == data_of(byte_level_tokenizer())


def test_only_merges_of_three_kept_tokens_survive_in_the_old_order() -> None:
    parsed = parse_tokenizer(data_of(byte_level_tokenizer()))
    kept = sorted(set(parsed.tokens) - {parsed.vocab["th"]})
    merges = [tuple(merge) for merge in prune_tokenizer(parsed, kept)["model"]["merges"]]
    expected = [m for m in parsed.merges if "th" not in (*m, m[0] + m[1])]
    assert merges == expected
    assert len(merges) < len(parsed.merges)


@pytest.mark.parametrize(
    ("token", "text"),
    [
        (b" the", " the"),
        ("날".encode()[:2], "날"),
        ("날".encode()[:1], "뀀"),
        ("날".encode()[1:], "날"),
        ("날".encode()[2:] + b"x", "날x"),
        ("😀".encode()[3:], "😀"),
        ("😀".encode()[:2], "\U0001f000"),
    ],
)
def test_a_part_of_a_character_has_whole_texts_that_contain_it(token: bytes, text: str) -> None:
    texts = list(witness_texts(token))
    assert text in texts
    assert all(token in found.encode() for found in texts)


@pytest.mark.parametrize("token", [b"\xff", b"\xc0\x80", b"\xed\xa0\x80", b"\xf5"])
def test_bytes_that_are_never_utf8_have_no_witness(token: bytes) -> None:
    assert list(witness_texts(token)) == []
