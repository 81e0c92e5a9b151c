"""`tokenizer.json` as a value: token bytes, derivations, and what is refused."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
from support.tiny_tokenizers import TINY, byte_fallback_tokenizer, byte_level_tokenizer, data_of
from tokenizers import Tokenizer

from vllm_kprune.errors import KPruneError
from vllm_kprune.tokenizer.bpe import BpeTokenizer, parse_tokenizer, read_tokenizer
from vllm_kprune.tokenizer.prune import pruned_tokenizer


def toy(**model: Any) -> dict[str, Any]:
    """A byte-level tokenizer of a handful of tokens."""
    vocab = {"t": 0, "h": 1, "e": 2, "th": 3, "the": 4, "he": 5}
    merges = [["t", "h"], ["th", "e"], ["h", "e"]]
    full = {"type": "BPE", "vocab": vocab, "merges": merges, **model}
    return {"model": full, "decoder": {"type": "ByteLevel"}, "added_tokens": []}


@pytest.mark.parametrize("kind", sorted(TINY))
def test_the_bytes_of_an_encoding_spell_the_text(kind: str) -> None:
    tokenizer = TINY[kind]()
    parsed = parse_tokenizer(data_of(tokenizer))
    text = "the cat 오늘 한中 뷁 😀 <unused1> \x00 é"
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    assert b"".join(map(parsed.token_bytes, ids)).decode() == text
    assert parsed.kind == kind
    assert len(parsed.byte_ids) == 256


def without_byte(data: dict[str, Any], name: str, instead: str | None) -> dict[str, Any]:
    """A byte-fallback tokenizer whose vocabulary lacks a byte token, or has a character for it."""
    vocab = dict(data["model"]["vocab"])
    token_id = vocab.pop(name)
    if instead is not None:
        vocab.pop(instead, None)
        vocab[instead] = token_id
    return {**data, "model": {**data["model"], "vocab": vocab}}


def test_a_tab_may_stand_for_its_byte_token_as_in_gemma_2() -> None:
    data = without_byte(data_of(byte_fallback_tokenizer()), "<0x09>", "\t")
    parsed = parse_tokenizer(data)
    assert len(parsed.byte_ids) == 256 and parsed.vocab["\t"] in parsed.byte_ids
    pruned = pruned_tokenizer(parsed, sorted(parsed.byte_ids | parsed.added_ids))
    text = "a\tb\x00한\t"
    assert pruned.decode(pruned.encode(text, add_special_tokens=False).ids) == text


@pytest.mark.parametrize(("name", "instead"), [("<0x09>", None), ("<0xC3>", "Ã")])
def test_a_byte_that_nothing_spells_is_refused_by_name(name: str, instead: str | None) -> None:
    data = without_byte(data_of(byte_fallback_tokenizer()), name, instead)
    with pytest.raises(KPruneError, match=f"byte fallback lacks the byte token {name}"):
        parse_tokenizer(data)


@pytest.mark.parametrize("kind", sorted(TINY))
def test_every_merged_token_has_a_derivation_that_ends_in_it(kind: str) -> None:
    parsed = parse_tokenizer(data_of(TINY[kind]()))
    for left, right in parsed.merges:
        steps = list(parsed.derivation(left + right))
        assert steps[-1] == left + right
        assert set(left + right) <= set(steps)


def test_a_derivation_follows_the_ranks_of_merges() -> None:
    parsed = parse_tokenizer(toy())
    assert list(parsed.derivation("the")) == ["t", "h", "e", "th", "the"]
    assert parsed.derivation_ids(4) == {0, 1, 2, 3, 4}
    other = parse_tokenizer(toy(merges=[["h", "e"], ["t", "h"], ["t", "he"]]))
    assert other.derivation_ids(4) == {0, 1, 2, 5, 4}


@pytest.mark.parametrize("kind", sorted(TINY))
def test_joining_tokens_one_by_one_brings_their_derivations_parts_first(kind: str) -> None:
    parsed = parse_tokenizer(data_of(TINY[kind]()))
    ids = [parsed.vocab[left + right] for left, right in parsed.merges]
    random.Random(1).shuffle(ids)
    joined: dict[int, None] = {}
    expected: set[int] = set()
    for token_id in ids:
        parsed.join(joined, token_id)
        expected |= parsed.derivation_ids(token_id)
        assert joined.keys() == expected
    place = {token_id: at for at, token_id in enumerate(joined)}
    for token_id in ids:
        assert max(map(place.get, parsed.derivation_ids(token_id))) == place[token_id]


def test_a_token_that_several_merges_make_joins_with_those_that_bpe_takes() -> None:
    merges = [["h", "e"], ["t", "h"], ["th", "e"], ["t", "he"]]
    parsed = parse_tokenizer(toy(merges=merges))
    joined: dict[int, None] = {}
    parsed.join(joined, 4)
    assert joined.keys() == {0, 1, 2, 5, 4} == parsed.derivation_ids(4)


@pytest.mark.parametrize("kind", sorted(TINY))
def test_the_last_merge_is_the_last_step_of_the_derivation(kind: str) -> None:
    parsed = parse_tokenizer(data_of(TINY[kind]()))
    for token_id, token in parsed.tokens.items():
        parts = parsed.last_merge(token_id)
        if parts is None:
            built = token in parsed.vocab and len(token) > 1
            assert not built or list(parsed.derivation(token))[-1] != token
            continue
        left, right = (parsed.tokens[part] for part in parts)
        assert left + right == token
        steps = parsed.derivation_ids(token_id)
        assert steps == {
            *parsed.derivation_ids(parts[0]),
            *parsed.derivation_ids(parts[1]),
            token_id,
        }


@pytest.mark.parametrize(
    ("merges", "parts"),
    [
        ([["t", "h"], ["h", "e"], ["th", "e"], ["t", "he"]], (3, 2)),
        ([["h", "e"], ["t", "h"], ["th", "e"], ["t", "he"]], (0, 5)),
        # Neither is reached: h e comes first, and no merge goes on from there.
        ([["h", "e"], ["t", "h"], ["th", "e"], ["th", "e"]], None),
    ],
)
def test_of_several_merges_the_ranks_choose(
    merges: list[list[str]], parts: tuple[int, int] | None
) -> None:
    parsed = parse_tokenizer(toy(merges=merges))
    assert parsed.last_merge(4) == parts == parsed.last_merge(4)


def test_a_merge_with_nothing_does_not_make_joining_endless() -> None:
    vocab = {"": 6, "t": 0, "h": 1, "e": 2, "th": 3, "the": 4, "he": 5}
    parsed = parse_tokenizer(toy(vocab=vocab, merges=[["", "t"], ["t", "h"], ["th", ""]]))
    joined: dict[int, None] = {}
    parsed.join(joined, 3)
    assert joined.keys() == {0, 1, 3}


def test_merges_may_be_written_as_strings_or_pairs() -> None:
    pairs = parse_tokenizer(toy())
    strings = parse_tokenizer(toy(merges=["t h", "th e", "h e"]))
    assert strings.merges == pairs.merges


def test_an_added_token_outside_the_vocabulary_has_an_id_and_no_derivation() -> None:
    data = toy() | {"added_tokens": [{"id": 9, "content": "<image>", "special": True}]}
    parsed = parse_tokenizer(data)
    assert parsed.tokens[9] == "<image>"
    assert parsed.token_bytes(9) == b"<image>"
    assert parsed.derivation_ids(9) == set()


def _without_byte(value: int) -> dict[str, Any]:
    data = data_of(byte_fallback_tokenizer())
    del data["model"]["vocab"][f"<0x{value:02X}>"]
    return data


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"model": {"type": "Unigram", "vocab": []}}, "Unigram.*only BPE"),
        ({"model": {"type": "WordPiece", "vocab": {}}}, "WordPiece.*only BPE"),
        ({"model": None}, "missing"),
        ([], "missing"),
        ("text", "missing"),
        (toy(merges=["t h e"]), "malformed"),
        (toy(merges=[1]), "malformed"),
        (toy() | {"added_tokens": [{"content": "x"}]}, "malformed"),
        (toy() | {"decoder": None}, "the decoder is missing"),
        (toy() | {"decoder": {"type": "WordPiece"}}, "byte-level or byte-fallback"),
        (_without_byte(0xEC), "lacks the byte token <0xEC>"),
    ],
)
def test_a_tokenizer_that_cannot_be_pruned_is_refused_with_the_reason(
    data: Any, message: str
) -> None:
    with pytest.raises(KPruneError, match=message):
        parse_tokenizer(data)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "not readable JSON"),
        (b"\xff\xfe", "not readable JSON"),
        (b"[" * 100_000, "not readable JSON"),
        (b'{"model": null}', "missing"),
        (b'{"model": ' + b"1" * 5000 + b"}", "not readable JSON"),
    ],
)
def test_a_damaged_tokenizer_json_is_refused_by_name(
    tmp_path: Path, content: bytes, message: str
) -> None:
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(KPruneError, match=message) as caught:
        read_tokenizer(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_a_slow_tokenizer_alone_is_refused_with_the_way_to_convert_it(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(b"sentencepiece")
    with pytest.raises(KPruneError, match=r"no tokenizer.json.*AutoTokenizer"):
        read_tokenizer(tmp_path)


def test_a_tokenizer_is_read_from_its_folder(tmp_path: Path) -> None:
    byte_level_tokenizer().save(str(tmp_path / "tokenizer.json"))
    read = read_tokenizer(tmp_path)
    assert isinstance(read, BpeTokenizer)
    assert json.loads((tmp_path / "tokenizer.json").read_text()) == read.data


def test_of_two_equal_merges_the_last_one_counts_as_in_the_library() -> None:
    data = toy(merges=[["t", "h"], ["h", "e"], ["t", "h"]])
    file = {**data, "decoder": data_of(byte_level_tokenizer())["decoder"]}
    assert Tokenizer.from_str(json.dumps(file)).encode("the").tokens == ["t", "he"]
    assert list(parse_tokenizer(data).derivation("the")) == ["t", "h", "e", "he"]
