"""Evidence: how often each token of the original vocabulary occurs in a profile's languages.

Sources are word lists with frequencies (`wordlists.py`), tables of texts as they are written, for
each genre (`genres.py`; made by `packaging/words`), and the user's own corpora (`corpus.py`).
Each is streamed, so memory does not grow with its size. Tokens that a server counted (`usage.py`)
need no text: they are counts already. Each gives rates (occurrences per million
tokens of that source), so a long corpus does not outweigh a short one.
"""

import hashlib
import importlib.metadata
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import regex
import zstandard
from tokenizers import Tokenizer

from vllm_kprune.arrays import Floats
from vllm_kprune.errors import KPruneError
from vllm_kprune.profile import LANGUAGES, Corpus, Profile, UsageFile
from vllm_kprune.storage.digest import sha256_file
from vllm_kprune.tokenizer.apart import ApartEncoder
from vllm_kprune.tokenizer.encoder import raise_failure
from vllm_kprune.vocabulary.batches import WeightedText, weighted_batches
from vllm_kprune.vocabulary.corpus import read_corpus
from vllm_kprune.vocabulary.genres import GenreTable, profile_tables
from vllm_kprune.vocabulary.usage import TokenUsage, read_usage
from vllm_kprune.vocabulary.wordlists import GROUP_WORDS, word_forms, word_frequencies

__all__ = ["Source", "TokenRates", "check_usage", "count_source", "profile_sources"]

_TABLES = Path(__file__).parent / "words"
_SPACED_WORD = regex.compile(r" \p{L}+")
_MARKS = regex.compile(r"[^\p{L}\p{N}]+")

# How much a list's word frequencies weigh against counted tokens (`strength.py`). English counts
# less: its table of running text knows the words better. So does Korean: tokens of its own script
# are kept whatever their frequency. Chosen with benchmarks/selection.py.
_WORDS_WEIGHT = {"en": 0.6, "ko": 3.0}
_OTHER_WORDS_WEIGHT = 12.0
# Prose is what most requests and answers are, so it is served closer than the rest.
_PROSE = 0.7
# Word lists have names and misspellings that no text has as often, and their spellings are guesses.
_LIST_ALLOWANCE = 2.0


@dataclass(frozen=True)
class Source:
    """Texts with weights: a `name` for people, a `digest` that pins the content, and a stream.

    A word list also gives its `words`: lower case -> share of all text. `words_weight` says how
    much these count; it is small if another source has the same words in running text. A source
    with `usage` has been counted already, and streams nothing. `own` is the user's own.
    `allowance`: how many times as much as others it may lose at a coverage.
    """

    name: str
    digest: str
    texts: Callable[[], Iterator[WeightedText]]
    words: Callable[[], Mapping[str, float]] | None = None
    words_weight: float = 1.0
    usage: TokenUsage | None = None
    own: bool = False
    allowance: float = 1.0


@dataclass(frozen=True)
class TokenRates:
    """Occurrences of each token id per million tokens of one source (float64 [ids])."""

    source: Source
    per_million: Floats
    tokens: int


def profile_sources(profile: Profile, corpora: Sequence[Corpus] = ()) -> list[Source]:
    """The sources for a profile: word lists, tables of its genres, and the user's corpora.

    Word lists have no punctuation. A profile without English and code takes that of English text.
    """
    lists = [LANGUAGES[code].wordlist for code in profile.languages]
    sources = [_wordlist_source(name) for name in lists if name]
    if "en" in profile.languages:
        sources.append(_table_source(GenreTable("English text", "english", allowance=_PROSE)))
    elif "code" not in profile.genres:
        # The English table without its words.
        sources.append(_table_source(GenreTable("marks", "english"), wanted=_MARKS.fullmatch))
    sources += [_table_source(table) for table in profile_tables(profile)]
    return sources + [_own_source(one) for one in corpora]


def count_source(tokenizer: Tokenizer, source: Source, size: int) -> TokenRates:
    """Encode a source and count its tokens; `size` is one more than the largest id."""
    if source.usage is not None:
        return _rates(source, source.usage.counts(size))
    counts = np.zeros(size)
    total = 0
    encoder = ApartEncoder.of(tokenizer)
    for batch in weighted_batches(source.texts()):
        ids, lengths = _encoded(encoder, batch, source.name)
        weights = np.repeat([weight for _, weight in batch], lengths)
        # Each token counts as often as its text does.
        counts += np.bincount(ids, weights=weights, minlength=size)
        total += len(ids)
    # Rates are weighted; `total` is the plain number of tokens that were encoded.
    return _rates(source, counts, total)


def _rates(source: Source, counts: Floats, total: int | None = None) -> TokenRates:
    total = int(counts.sum()) if total is None else total
    if not total:
        what = "text to count" if source.usage is None else "token of this tokenizer"
        raise KPruneError(f"{source.name} contains no {what}; give another file")
    return TokenRates(source, counts * (1e6 / counts.sum()), total)


def check_usage(sources: Iterable[Source], folder: Path) -> None:
    """Raise `KPruneError` for a source whose counted ids are not those of a folder's tokenizer."""
    counted = [(source.name, source.usage) for source in sources if source.usage is not None]
    if not counted:
        return
    found = sha256_file(folder / "tokenizer.json")
    for name, usage in counted:
        if usage.tokenizer_sha256 != found:
            raise KPruneError(
                f"{name}: counted with another tokenizer than that in {folder} (SHA-256 of "
                f"tokenizer.json: {usage.tokenizer_sha256[:12]}…, here {found[:12]}…), so its ids "
                "mean other tokens; give a file from a server of this model"
            )


def _encoded(
    encoder: ApartEncoder, batch: Sequence[WeightedText], source: str
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    try:
        return encoder.encode([text for text, _ in batch])
    except BaseException as error:
        raise_failure(error, f"the tokenizer fails on {source}")
        raise


def _wordlist_source(language: str) -> Source:
    version = importlib.metadata.version("wordfreq")
    name = f"word list {language}"
    return Source(
        name,
        f"wordfreq {version} {language}",
        lambda: word_forms(language),
        lambda: word_frequencies(language),
        words_weight=_WORDS_WEIGHT.get(language, _OTHER_WORDS_WEIGHT),
        allowance=_LIST_ALLOWANCE,
    )


def _table_source(table: GenreTable, wanted: Callable[[str], Any] = bool) -> Source:
    """Pieces of running text with their rates; `packaging/words` says where they were counted."""
    path = _TABLES / f"{table.file}.json.zst"
    content = path.read_bytes() if table.file else b""
    # The name tells "English text" from "marks", which is a part of the same file. What is made
    # depends on the word lists, too.
    made_of = f" wordfreq {importlib.metadata.version('wordfreq')}" if table.made else ""
    digest = hashlib.sha256(content + f"{table.name}{made_of}".encode()).hexdigest()
    texts = table.made or (lambda: _grouped(row for row in _table_rows(path) if wanted(row[0])))
    return Source(table.name, digest, texts, allowance=table.allowance)


def _table_rows(path: Path) -> Iterator[WeightedText]:
    with zstandard.open(path, "rt", encoding="utf-8") as stream:
        table = json.load(stream)
    return zip(table["pieces"], table["rates"], strict=True)


def _grouped(rows: Iterable[WeightedText]) -> Iterator[WeightedText]:
    """Join words of neighbouring rates that begin with a space; yield other pieces alone.

    Joined, words are encoded as one text, which is faster; the space keeps them apart.
    """
    words: list[WeightedText] = []
    for piece, rate in rows:
        if not _SPACED_WORD.fullmatch(piece):
            yield piece, rate
            continue
        words.append((piece, rate))
        if len(words) == GROUP_WORDS:
            yield _joined(words)
            words = []
    if words:
        yield _joined(words)


def _joined(words: Sequence[WeightedText]) -> WeightedText:
    mean = sum(rate for _, rate in words) / len(words)
    # Neighbours in a table sorted by rate, so the mean is close to each word's own.
    return "".join(word for word, _ in words), mean


def _own_source(corpus: Corpus) -> Source:
    return _usage_source(corpus.path) if isinstance(corpus, UsageFile) else _corpus_source(corpus)


def _usage_source(path: Path) -> Source:
    usage = read_usage(path)
    if not usage.ids:
        raise KPruneError(
            f"usage file {path} names no token: none occurs in {usage.floor} of the "
            f"{usage.requests} requests that it counts; let the server count longer"
        )
    return Source(f"usage {path.name}", sha256_file(path), lambda: iter(()), usage=usage, own=True)


def _corpus_source(path: Path) -> Source:
    if not path.is_file():
        raise KPruneError(f"corpus {path} does not exist or is not a file")
    next(read_corpus(path), None)  # a file that cannot be read is refused now, not minutes later
    return Source(
        f"corpus {path.name}",
        sha256_file(path),
        lambda: ((text, 1.0) for text in read_corpus(path)),
        own=True,
    )
