"""Corpora are streamed, whatever they contain; others are refused with name and line."""

import gzip
import json
import random
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import regex
import zstandard
from support.tiny_tokenizers import byte_level_tokenizer

from vllm_kprune.errors import KPruneError
from vllm_kprune.profile import Profile
from vllm_kprune.vocabulary import batches
from vllm_kprune.vocabulary import corpus as corpus_module
from vllm_kprune.vocabulary.corpus import read_corpus
from vllm_kprune.vocabulary.evidence import Source, count_source, profile_sources
from vllm_kprune.vocabulary.wordlists import word_forms

TEXT = "첫 줄이다.\nthe second\r\n\n  last"
PACKED: dict[str, Callable[[bytes], bytes]] = {
    "": lambda content: content,
    ".gz": gzip.compress,
    ".zst": zstandard.compress,
}


def corpus(folder: Path, name: str, content: bytes) -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("packing", sorted(PACKED))
def test_lines_of_a_text_are_given_with_their_ends(tmp_path: Path, packing: str) -> None:
    path = corpus(tmp_path, f"a.txt{packing}", PACKED[packing](TEXT.encode()))
    assert list(read_corpus(path)) == ["첫 줄이다.\n", "the second\r\n", "\n", "  last"]


@pytest.mark.parametrize("packing", sorted(PACKED))
def test_strings_of_json_lines_are_given_and_text_alone_where_there_is_one(
    tmp_path: Path, packing: str
) -> None:
    lines = [
        {"text": "가", "url": "x"},
        {"q": "나", "a": ["다", {"n": 1, "b": "라"}]},
        "마",
        3,
        None,
    ]
    content = "\n\n".join(json.dumps(line) for line in lines).encode()
    path = corpus(tmp_path, f"a.jsonl{packing}", PACKED[packing](content))
    assert list(read_corpus(path)) == ["가", "나", "다", "라", "마"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"one\ntwo\0\n", "binary .*line 2"),
        ("a.txt", "가나".encode("euc-kr"), "not UTF-8"),
        ("a.txt", "text".encode("utf-16"), "not UTF-8"),
        ("a.txt", b"ok\n" * 100_000 + b"\xff", "not UTF-8"),
        ("a.png", b"\x89PNG\r\n\x1a\n\0\0", "not UTF-8|binary"),
        ("a.jsonl", b'{"text": "a"}\n{"text": \n', "line 2: not JSON"),
        ("a.jsonl", b"plain text\n", "line 1: not JSON"),
        ("a.jsonl", b"[" * 100_000, "line 1: not JSON"),
        ("a.jsonl", b'{"n": ' + b"1" * 5000 + b"}", "line 1: not JSON"),
        ("a.gz", b"not gzip", "cannot be read"),
        ("a.gz", gzip.compress(b"hello world " * 1000)[:-12], "cannot be read"),
        ("a.gz", b"\x1f\x8b\x08" + b"\0" * 7 + b"\xff" * 40, "cannot be read"),
        ("a.zst", b"not zstandard", "cannot be read"),
    ],
)
def test_a_damaged_corpus_is_refused_with_the_place(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    path = corpus(tmp_path, name, content)
    with pytest.raises(KPruneError, match=message) as caught:
        list(read_corpus(path))
    assert name in str(caught.value)


@pytest.mark.parametrize("name", ["missing.txt", "folder"])
def test_a_corpus_that_is_not_a_file_is_refused_before_anything_is_counted(
    tmp_path: Path, name: str
) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(KPruneError, match="does not exist or is not a file"):
        profile_sources(Profile(name="th", languages=("th",), code=False), [tmp_path / name])


@pytest.mark.parametrize("content", [b"", b'""\n'])
def test_an_empty_corpus_is_refused(tmp_path: Path, content: bytes) -> None:
    path = corpus(tmp_path, "a.jsonl", content)
    profile = Profile(name="th", languages=("th",), code=False)
    source = profile_sources(profile, [path])[-1]
    with pytest.raises(KPruneError, match=r"corpus a.jsonl contains no text"):
        count_source(byte_level_tokenizer(), source, 1000)


def test_lone_surrogates_in_json_are_counted_as_text(tmp_path: Path) -> None:
    path = corpus(tmp_path, "a.jsonl", b'"\\ud800 the cat"\n')
    source = Source("x", "y", lambda: ((text, 1.0) for text in read_corpus(path)))
    assert count_source(byte_level_tokenizer(), source, 1000).tokens > 2


def test_a_very_long_line_is_read_in_pieces_and_whole(tmp_path: Path) -> None:
    text = "가나다 " * 100_000
    pieces = list(read_corpus(corpus(tmp_path, "a.txt", text.encode())))
    assert "".join(pieces) == text
    assert max(map(len, pieces)) <= 1 << 16
    record = corpus(tmp_path, "a.jsonl", json.dumps({"text": text}).encode())
    assert list(read_corpus(record)) == [text]


def test_a_long_corpus_is_read_up_to_its_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corpus_module, "_MOST_CHARACTERS", 1000)
    read = "".join(read_corpus(corpus(tmp_path, "a.txt", b"0123456789\n" * 1000)))
    assert 1000 <= len(read) <= 1011


@pytest.mark.slow
def test_counting_a_large_corpus_takes_memory_of_a_batch_only(tmp_path: Path) -> None:
    """16 MB of text, packed; the peak of Python's own memory stays far below that."""
    line = "".join(random.Random(0).choices("the cat 가나다", k=99)) + "\n"
    path = corpus(tmp_path, "a.txt.gz", gzip.compress(line.encode() * 100_000, 1))
    total = 0
    tracemalloc.start()
    for batch in batches.weighted_batches((text, 1.0) for text in read_corpus(path)):
        total += len(batch)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert total == 100_000
    assert peak < 10_000_000


def test_rates_are_per_million_tokens_and_follow_the_weights() -> None:
    tokenizer = byte_level_tokenizer()
    texts = [("a", 3.0), ("b", 1.0)]
    rates = count_source(tokenizer, Source("x", "y", lambda: iter(texts)), 1000)
    assert rates.per_million.shape == (1000,)
    assert rates.per_million[tokenizer.token_to_id("a")] == 750_000
    assert rates.per_million[tokenizer.token_to_id("b")] == 250_000
    assert (rates.tokens, rates.per_million.sum()) == (2, 1_000_000)


def test_batches_do_not_change_the_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [(f"the cat {n}", 1.0 + n % 3) for n in range(50)]
    source = Source("x", "y", lambda: iter(texts))
    whole = count_source(byte_level_tokenizer(), source, 1000)
    monkeypatch.setattr(batches, "_BATCH_TEXTS", 7)
    parts = count_source(byte_level_tokenizer(), source, 1000)
    assert np.allclose(whole.per_million, parts.per_million)
    assert whole.tokens == parts.tokens


def test_sources_are_word_lists_code_and_corpora_with_digests_that_pin_them(
    tmp_path: Path,
) -> None:
    path = corpus(tmp_path, "a.txt", b"one")
    profile = Profile(name="enko", languages=("en", "ko"))
    names = [source.name for source in profile_sources(profile, [path])]
    assert names == [
        "word list en",
        "word list ko",
        "English text",
        "source code",
        "corpus a.txt",
    ]
    plain = Profile(name="th", languages=("th",), code=False)
    before = profile_sources(plain, [path])[-1].digest
    assert profile_sources(plain, [path])[-1].digest == before
    path.write_bytes(b"two")
    assert profile_sources(plain, [path])[-1].digest != before


@pytest.mark.slow
def test_code_has_the_names_of_many_languages_in_the_forms_of_code() -> None:
    code = _named("source code", Profile(name="x", languages=("en",)))
    pieces = {
        piece for text, _ in code.texts() for piece in regex.findall(r"^\W?\w+| \w+|^.*$", text)
    }
    known = {".getElementById", " instanceof", " nullptr", " fmt", "::", "</", " =>", "__", ".__"}
    assert known <= pieces
    assert any(text.startswith("\n    ") and not text.strip() for text, _ in code.texts())


@pytest.mark.slow
def test_english_text_has_names_and_words_as_they_are_written() -> None:
    english = _named("English text", Profile(name="x", languages=("en",), code=False))
    rates: dict[str, float] = {}
    for text, rate in english.texts():
        for word in regex.findall(r" ?\p{L}+", text):
            rates[word] = max(rates.get(word, 0.0), rate)
    assert rates[" Washington"] > 10 * rates.get(" washington", 0.0)
    assert rates[" the"] > rates[" The"] > rates[" THE"] > 0


def test_marks_are_counted_where_neither_english_nor_code_brings_them() -> None:
    marks = _named("marks", Profile(name="x", languages=("ko",), code=False))
    texts = [text for text, _ in marks.texts()]
    assert {"...", '."', "\n\n"} <= set(texts)
    assert not any(regex.search(r"[\p{L}\p{N}]", text) for text in texts)


def _named(name: str, profile: Profile) -> Source:
    [source] = [s for s in profile_sources(profile) if s.name == name]
    return source


def test_words_are_counted_as_in_running_text_capitalised_and_upper_case() -> None:
    text = "".join(_some(word_forms("en"), 40))
    words = text.split()
    assert {"the", "The", "and", "And"} <= set(words)
    assert " the" in text
    assert any(word.isupper() and len(word) > 2 for word in words)


def _some(texts: Iterator[tuple[str, float]], count: int) -> Iterator[str]:
    for _, (text, weight) in zip(range(count), texts, strict=False):
        assert weight > 0
        yield f"{text}\n"


def test_chinese_words_are_found_in_traditional_characters_too() -> None:
    chinese = _named("word list zh", Profile(name="x", languages=("zh",), code=False))
    assert chinese.words is not None
    words = chinese.words()
    for simplified, traditional in (("历史", "歷史"), ("技术", "技術"), ("以后", "以後")):
        assert words[traditional] == words[simplified] > 1e-6
    assert "歴史" not in words  # Japanese
