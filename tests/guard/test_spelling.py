"""Tokens are spelled as the tokenizer's own decoder spells them; the cache is only a cache."""

import json
import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.guard_oracle import Vocabulary
from support.tiny_tokenizers import TINY, data_of
from tokenizers import AddedToken, Tokenizer, decoders

from vllm_kprune.errors import KPruneError
from vllm_kprune.guard.spelling import TokenSpellings, load_spellings
from vllm_kprune.guard.tokens import BYTE, PRESENT, SPECIAL, UNSPELLABLE, spell_tokens
from vllm_kprune.tokenizer.bpe import parse_tokenizer


def spell(tokenizer: Tokenizer) -> TokenSpellings:
    return spell_tokens(parse_tokenizer(json.loads(tokenizer.to_str())))


def misspelled(spellings: TokenSpellings, tokenizer: Tokenizer) -> list[int]:
    """Ids that the tokenizer decodes otherwise."""
    ids = [i for i in range(spellings.num_tokens) if spellings.flags[i] & PRESENT]
    decoded = tokenizer.decode_batch([[i] for i in ids], skip_special_tokens=False)
    spelled = [spellings.bytes_of(i).decode(errors="replace") for i in ids]
    return [i for i, a, b in zip(ids, spelled, decoded, strict=True) if a != b]


@pytest.mark.slow
def test_every_token_is_spelled_as_its_tokenizer_decodes_it(vocabulary: Vocabulary) -> None:
    assert misspelled(vocabulary.spellings, vocabulary.tokenizer) == []


@pytest.mark.parametrize("kind", sorted(TINY))
def test_added_tokens_are_spelled_as_they_are_decoded(kind: str) -> None:
    """Also those with characters that are bytes to a byte-level decoder, or that it cannot read."""
    tokenizer = Tokenizer.from_str(TINY[kind]().to_str())
    contents = ["<think>", "é", "中 文", " a b", "▁▁", "\n\n", "\u00a0", "Ġx", "한"]
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in contents])
    spellings = spell(tokenizer)
    assert misspelled(spellings, tokenizer) == []
    for text in contents:
        assert not spellings.flags_of(tokenizer.token_to_id(text)) & SPECIAL


@pytest.mark.parametrize("kind", sorted(TINY))
def test_flags_tell_special_and_byte_tokens_and_gaps(kind: str) -> None:
    data = data_of(TINY[kind]())
    missing = data["model"]["vocab"].pop("the")
    spellings = spell_tokens(parse_tokenizer(data))
    special = {t["id"] for t in data["added_tokens"] if t["special"]}
    assert set(np.flatnonzero(spellings.flags & SPECIAL)) == special
    assert np.count_nonzero(spellings.flags & BYTE) == (256 if kind == "byte_fallback" else 0)
    assert spellings.flags_of(missing) == spellings.flags_of(-1) == 0
    assert spellings.flags_of(spellings.num_tokens) == 0


def test_bytes_that_no_text_has_are_told_apart() -> None:
    vocab = {"ĠaÃ": 0, "ÃĤ": 1, "Ĥ¬b": 2, "ĤĤĤĤ": 3, "êaaa": 4, "ÿ": 5, "한": 6}
    data = {
        "model": {"type": "BPE", "vocab": vocab, "merges": []},
        "decoder": {"type": "ByteLevel"},
    }
    spellings = spell_tokens(parse_tokenizer(data))
    assert spellings.tail_lengths.tolist() == [1, 0, 0, 0, 0, 1, 0]
    assert spellings.head_lengths.tolist() == [0, 0, 2, 0, 0, 0, 0]
    assert [bool(flags & UNSPELLABLE) for flags in spellings.flags] == [
        *(False, False, False, True, True, False, False)
    ]
    assert spellings.bytes_of(2) == b"\x82\xacb"
    assert spellings.bytes_of(6) == "한".encode()
    assert spellings.code_points.tobytes().decode("utf-32-le") == " aÂb한"


@pytest.mark.parametrize(
    "decoder",
    [
        {"type": "Sequence", "decoders": [{"type": "ByteLevel"}, {"type": "WordPiece"}]},
        {"type": "Sequence", "decoders": [{"type": "Fuse"}, {"type": "ByteLevel"}]},
        {
            "type": "Sequence",
            "decoders": [
                {"type": "ByteFallback"},
                {"type": "Replace", "pattern": {"String": "a"}, "content": "中"},
            ],
        },
        {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"Regex": "a+"}, "content": "b"},
                {"type": "ByteFallback"},
            ],
        },
    ],
)
def test_a_decoder_that_could_do_anything_is_refused(decoder: dict[str, Any]) -> None:
    data = data_of(TINY["byte_fallback"]()) | {"decoder": decoder}
    with pytest.raises(KPruneError, match="cannot work with"):
        spell_tokens(parse_tokenizer(data))


@pytest.mark.parametrize(
    "first", [decoders.Replace("▁", " "), decoders.Metaspace("▁", "always")], ids=["llama", "spm"]
)
def test_decoders_that_strip_a_leading_space_are_understood(first: Any) -> None:
    """Llama-2's and Mistral's: the space is lost at the beginning of a text alone."""
    tokenizer = Tokenizer.from_str(TINY["byte_fallback"]().to_str())
    tokenizer.decoder = decoders.Sequence(
        [first, decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    spellings = spell(tokenizer)
    ids = [i for i in range(spellings.num_tokens) if not spellings.flags[i] & (BYTE | SPECIAL)]
    a = tokenizer.token_to_id("a")
    texts = tokenizer.decode_batch([[a, i] for i in ids])
    assert texts == ["a" + spellings.bytes_of(i).decode() for i in ids]


def same(one: TokenSpellings, two: TokenSpellings) -> bool:
    return one.kind == two.kind and all(
        np.array_equal(getattr(one, name), getattr(two, name))
        and getattr(one, name).dtype == getattr(two, name).dtype
        for name in TokenSpellings.__dataclass_fields__
        if name != "kind"
    )


@pytest.fixture(params=sorted(TINY))
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A folder with a small tokenizer."""
    (tmp_path / "model").mkdir()
    TINY[request.param]().save(str(tmp_path / "model" / "tokenizer.json"))
    return tmp_path / "model"


def test_what_the_cache_holds_is_what_was_made(folder: Path, tmp_path: Path) -> None:
    made = load_spellings(folder, tmp_path / "cache")
    [kept] = (tmp_path / "cache").iterdir()
    content = kept.read_bytes()
    assert same(load_spellings(folder, tmp_path / "cache"), made)
    assert same(load_spellings(folder, None), made)
    assert kept.read_bytes() == content


def test_another_content_is_another_file(folder: Path, tmp_path: Path) -> None:
    load_spellings(folder, tmp_path / "cache")
    data = json.loads((folder / "tokenizer.json").read_text())
    added = data["added_tokens"]
    last = max(*data["model"]["vocab"].values(), *(token["id"] for token in added))
    added.append({**added[-1], "id": last + 1, "content": "new", "special": False})
    (folder / "tokenizer.json").write_text(json.dumps(data))
    changed = load_spellings(folder, tmp_path / "cache")
    assert changed.bytes_of(changed.num_tokens - 1) == b"new"
    assert len([*(tmp_path / "cache").iterdir()]) == 2


def _pickled(arrays: dict[str, Any]) -> None:
    arrays["flags"] = np.array([{"a": 1}], dtype=object)


def _shorter(arrays: dict[str, Any]) -> None:
    arrays["flags"] = arrays["flags"][:-1]


def _wider(arrays: dict[str, Any]) -> None:
    arrays["starts"] = arrays["starts"].astype(np.int64)


def _backwards(arrays: dict[str, Any]) -> None:
    arrays["starts"] = arrays["starts"].copy()
    arrays["starts"][3] = 10_000


def _past_unicode(arrays: dict[str, Any]) -> None:
    arrays["code_points"] = arrays["code_points"] + np.uint32(0x110000)


def _unknown_kind(arrays: dict[str, Any]) -> None:
    arrays["kind"] = np.array("unigram")


def _missing(arrays: dict[str, Any]) -> None:
    del arrays["head_lengths"]


def _empty(arrays: dict[str, Any]) -> None:
    arrays.clear()


@pytest.mark.parametrize(
    "damage",
    [_pickled, _shorter, _wider, _backwards, _past_unicode, _unknown_kind, _missing, _empty],
)
def test_a_cache_file_with_other_content_is_made_again(
    folder: Path, tmp_path: Path, damage: Any, caplog: pytest.LogCaptureFixture
) -> None:
    made = load_spellings(folder, tmp_path / "cache")
    [kept] = (tmp_path / "cache").iterdir()
    with np.load(kept) as loaded:
        arrays = dict(loaded)
    damage(arrays)
    np.savez(kept, **arrays)
    with caplog.at_level(logging.WARNING):
        assert same(load_spellings(folder, tmp_path / "cache"), made)
    assert "is damaged and is made again" in caplog.text
    caplog.clear()
    assert same(load_spellings(folder, tmp_path / "cache"), made)
    assert caplog.text == ""


@pytest.mark.parametrize("cut", [0, 1, 100, -1])
def test_a_cache_file_that_is_cut_off_is_made_again(folder: Path, tmp_path: Path, cut: int) -> None:
    made = load_spellings(folder, tmp_path / "cache")
    [kept] = (tmp_path / "cache").iterdir()
    content = kept.read_bytes()
    kept.write_bytes(content[:cut])
    assert same(load_spellings(folder, tmp_path / "cache"), made)
    assert kept.read_bytes() == content


def test_a_cache_that_cannot_be_written_is_only_logged(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "cache").write_text("a file")
    with caplog.at_level(logging.WARNING):
        assert load_spellings(folder, tmp_path / "cache").num_tokens > 0
    assert "no cache for the next start" in caplog.text


def test_the_newest_few_files_are_kept(folder: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    cache.mkdir()
    for n in range(12):
        old = cache / f"spellings-1-{n:032x}.npz"
        old.write_bytes(b"old")
        os.utime(old, (n, n))
    (cache / "other.txt").write_text("not ours")
    load_spellings(folder, cache)
    left = {path.name for path in cache.iterdir()}
    assert len(left) == 9
    assert "other.txt" in left
    assert f"spellings-1-{11:032x}.npz" in left
    assert f"spellings-1-{4:032x}.npz" not in left


def test_a_folder_without_a_tokenizer_says_so(tmp_path: Path) -> None:
    with pytest.raises(KPruneError, match=r"has no tokenizer\.json"):
        load_spellings(tmp_path, tmp_path / "cache")
