"""Laws 1, 2, 3 and 5 on the real Gemma-3 tokenizer and on small ones of both kinds."""

import gzip
import json
import random
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.tiny_tokenizers import SENTENCES, TINY
from support.tokenizer_cases import SETTINGS, TEXTS, Pair, pair_of
from tokenizers import Tokenizer

from vllm_kprune.tokenizer.bpe import parse_tokenizer
from vllm_kprune.tokenizer.prune import prune_tokenizer
from vllm_kprune.tokenizer.reach import unreachable_ids

LANGUAGES = ("ar", "de", "en", "es", "fr", "hi", "ja", "ko", "ru", "th", "vi", "zh")


@SETTINGS
@given(text=TEXTS)
@pytest.mark.slow
def test_covered_text_keeps_its_tokens(pair: Pair, text: str) -> None:
    broken, _ = pair.uncovered([text])
    assert broken == []


@SETTINGS
@given(text=TEXTS)
def test_encoding_any_text_loses_nothing(pair: Pair, text: str) -> None:
    assert pair.lossy([text]) == []


@SETTINGS
@given(seed=st.integers(0, 1 << 30))
@pytest.mark.slow
def test_texts_of_kept_tokens_keep_their_tokens(pair: Pair, seed: int) -> None:
    chosen = random.Random(seed)
    texts = [
        b"".join(
            pair.parsed.token_bytes(i) for i in chosen.sample(pair.kept_ids, chosen.randint(1, 8))
        ).decode(errors="ignore")
        for _ in range(50)
    ]
    broken, covered = pair.uncovered(texts)
    assert broken == []
    assert covered > 0


@SETTINGS
@given(text=TEXTS)
@pytest.mark.slow
def test_the_makers_tokenizers_keep_covered_text_and_lose_nothing(
    published: Pair, text: str
) -> None:
    assert published.uncovered([text])[0] == []
    assert published.lossy([text]) == []


def test_texts_of_kept_tokens_keep_them_in_the_makers_tokenizers(published: Pair) -> None:
    chosen = random.Random(5)
    spelled = [published.parsed.token_bytes(i) for i in chosen.sample(published.kept_ids, 4000)]
    texts = [b"".join(spelled[at : at + 4]).decode(errors="ignore") for at in range(0, 4000, 4)]
    broken, covered = published.uncovered(texts)
    assert (broken, covered > 500) == ([], True)
    assert published.lossy(texts) == []


@pytest.mark.slow
def test_the_makers_tokenizers_have_no_dead_rows_but_steps_that_were_dead_before(
    published: Pair,
) -> None:
    parsed = parse_tokenizer(published.data)
    plain = [i for i in parsed.tokens if i not in parsed.added_ids]
    dead = [published.kept_ids[i] for i in unreachable_ids(parsed, published.pruned, plain)]
    assert len(dead) < 10
    assert unreachable_ids(published.parsed, published.original, dead) == dead


@pytest.mark.parametrize("language", ("en", "ko", "zh"))
def test_real_text_obeys_the_laws_in_the_makers_tokenizers(
    published: Pair, kprune_data: Path, language: str
) -> None:
    lines = list(islice(_lines(kprune_data, language), 600))
    broken, covered = published.uncovered(lines)
    assert broken == []
    assert published.lossy(lines[:200]) == []
    if language != "zh":
        assert covered > 0.8 * len(lines)


def test_sentences_of_the_kept_languages_are_covered_and_others_are_spelled(tiny: Pair) -> None:
    korean = "대한민국의 수도는 서울이다."
    assert tiny.covers(korean)
    assert not tiny.covers("学校 学生们 Привет")
    broken, covered = tiny.uncovered(SENTENCES)
    assert (broken, covered > 0) == ([], True)
    assert tiny.lossy(SENTENCES) == []
    length = len(tiny.pruned.encode("学校 学生们").ids)
    assert length > len(tiny.original.encode("学校 学生们").ids)


@pytest.mark.slow
def test_every_kept_token_is_produced_by_some_text(pair: Pair) -> None:
    parsed = parse_tokenizer(pair.data)
    plain = [i for i in parsed.tokens if i not in parsed.added_ids]
    assert len(plain) > 100
    assert unreachable_ids(parsed, pair.pruned, plain) == []


def test_added_tokens_are_still_matched_whole(pair: Pair) -> None:
    for token in pair.parsed.added:
        if token.id in pair.new_ids and not token.content.startswith("▁"):
            ids = pair.pruned.encode(token.content, add_special_tokens=False).ids
            assert ids == [pair.new_ids[token.id]], token


def test_a_dropped_reserved_token_is_spelled_as_plain_text(pair: Pair) -> None:
    (dropped,) = {t.id for t in pair.parsed.added if t.content == "<unused2>"}
    assert dropped not in pair.new_ids
    ids = pair.pruned.encode("<unused2>", add_special_tokens=False).ids
    assert len(ids) > 1
    assert pair.pruned.decode(ids) == "<unused2>"


def test_the_beginning_of_text_is_mapped_in_the_post_processor(pair: Pair) -> None:
    bos = pair.original.token_to_id("<bos>")
    assert pair.original.encode("a").ids[0] == bos
    assert pair.pruned.encode("a").ids[0] == pair.new_ids[bos]
    second = pair.pruned.encode("a", "a").ids
    assert second.count(pair.new_ids[bos]) == 2


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.slow
def test_real_text_of_any_language_obeys_the_laws(
    gemma: Pair, kprune_data: Path, language: str
) -> None:
    lines = list(islice(_lines(kprune_data, language), 1200))
    assert len(lines) > 50
    broken, covered = gemma.uncovered(lines)
    assert broken == []
    assert gemma.lossy(lines[:400]) == []
    if language in ("en", "ko"):
        assert covered > 0.8 * len(lines)  # a line is covered if all of its tokens are kept


def _lines(data: Path, language: str) -> Iterator[str]:
    for path in sorted(data.glob(f"calib-*/{language}.*")):
        content = path.read_bytes()
        text = (gzip.decompress(content) if path.suffix == ".gz" else content).decode()
        for line in islice(text.splitlines(), 600):
            yield "\n".join(map(str, json.loads(line).values())) if ".jsonl" in path.name else line


@pytest.mark.parametrize("kind", sorted(TINY))
@pytest.mark.slow
def test_selecting_ids_without_their_ancestors_leaves_dead_rows(kind: str) -> None:
    """Shows that law 3 can fail: long tokens alone, with the bytes, cannot be built."""
    tokenizer = TINY[kind]()
    parsed = parse_tokenizer(json.loads(tokenizer.to_str()))
    spelled = {i: parsed.token_bytes(i).decode(errors="replace") for i in parsed.vocab.values()}
    raw = [i for i, text in spelled.items() if "서울" in text]
    bare = pair_of(tokenizer, {*raw, *parsed.byte_ids, *parsed.added_ids})
    dead = unreachable_ids(parse_tokenizer(bare.data), bare.pruned, [bare.new_ids[i] for i in raw])
    assert dead != []
    closure = set().union(*(parsed.derivation_ids(i) for i in raw))
    closed = pair_of(tokenizer, {*bare.kept_ids, *closure})
    ids = [closed.new_ids[i] for i in raw]
    assert unreachable_ids(parse_tokenizer(closed.data), closed.pruned, ids) == []


def test_keeping_every_token_changes_nothing(tiny: Pair) -> None:
    everything = sorted(tiny.parsed.tokens)
    assert prune_tokenizer(tiny.parsed, everything) == tiny.parsed.data


def test_pruning_twice_gives_the_same_and_pruning_the_pruned_changes_nothing(tiny: Pair) -> None:
    assert prune_tokenizer(tiny.parsed, tiny.kept_ids) == tiny.data
    again = parse_tokenizer(tiny.data)
    assert prune_tokenizer(again, range(len(tiny.kept_ids))) == tiny.data
    reread = Tokenizer.from_str(json.dumps(tiny.data))
    assert reread.get_vocab_size() == len(tiny.kept_ids)
