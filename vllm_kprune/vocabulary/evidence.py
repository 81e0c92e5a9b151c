"""Evidence: how often each token of the original vocabulary occurs in a profile's languages.

Sources are word lists with frequencies (`wordlists.py`), tables of English text and source code as
they are written (`words/`, made by `packaging/words`), and the user's own corpora (`corpus.py`).
Each is streamed, so memory does not grow with its size. Each gives rates (occurrences per million
tokens of that source), so a long corpus does not outweigh a short one.
"""

import hashlib
import importlib.metadata
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import regex
import zstandard
from tokenizers import Encoding, Tokenizer

from vllm_kprune.arrays import Floats
from vllm_kprune.errors import KPruneError
from vllm_kprune.profile import LANGUAGES, Profile
from vllm_kprune.tokenizer.encoder import raise_failure
from vllm_kprune.vocabulary.batches import WeightedText, weighted_batches
from vllm_kprune.vocabulary.corpus import read_corpus
from vllm_kprune.vocabulary.wordlists import GROUP_WORDS, word_forms, word_frequencies

__all__ = ["Source", "TokenRates", "count_source", "profile_sources"]

_TABLES = Path(__file__).parent / "words"
_SPACED_WORD = regex.compile(r" \p{L}+")
_MARKS = regex.compile(r"[^\p{L}\p{N}]+")

# How much a list's word frequencies weigh against counted tokens (`strength.py`). English counts
# less: its table of running text knows the words better. So does Korean: tokens of its own script
# are kept whatever their frequency. Chosen with benchmarks/selection.py.
_WORDS_WEIGHT = {"en": 0.6, "ko": 3.0}
_OTHER_WORDS_WEIGHT = 12.0


@dataclass(frozen=True)
class Source:
    """Texts with weights: a `name` for people, a `digest` that pins the content, and a stream.

    A word list also gives its `words`: lower case -> share of all text. `words_weight` says how
    much these count; it is small if another source has the same words in running text.
    """

    name: str
    digest: str
    texts: Callable[[], Iterator[WeightedText]]
    words: Callable[[], Mapping[str, float]] | None = None
    words_weight: float = 1.0


@dataclass(frozen=True)
class TokenRates:
    """Occurrences of each token id per million tokens of one source (float64 [ids])."""

    source: Source
    per_million: Floats
    tokens: int


def profile_sources(profile: Profile, corpora: Sequence[Path] = ()) -> list[Source]:
    """The sources for a profile: word lists, tables of text, and the user's corpora.

    Word lists have no punctuation. A profile without English and code takes that of English text.
    """
    lists = [LANGUAGES[code].wordlist for code in profile.languages]
    sources = [_wordlist_source(name) for name in lists if name]
    if "en" in profile.languages:
        sources.append(_table_source("English text", "english"))
    if profile.code:
        sources.append(_table_source("source code", "code"))
    elif "en" not in profile.languages:
        # The English table without its words.
        sources.append(_table_source("marks", "english", wanted=_MARKS.fullmatch))
    return sources + [_corpus_source(path) for path in corpora]


def count_source(tokenizer: Tokenizer, source: Source, size: int) -> TokenRates:
    """Encode a source and count its tokens; `size` is one more than the largest id."""
    counts = np.zeros(size)
    total = 0
    for batch in weighted_batches(source.texts()):
        encodings = _encoded(tokenizer, batch, source.name)
        lengths = [len(encoding) for encoding in encodings]
        ids = np.fromiter(itertools.chain.from_iterable(e.ids for e in encodings), dtype=np.int64)
        weights = np.repeat([weight for _, weight in batch], lengths)
        # Each token counts as often as its text does.
        counts += np.bincount(ids, weights=weights, minlength=size)
        total += len(ids)
    if not total:
        raise KPruneError(f"{source.name} contains no text to count; give another file")
    # Rates are weighted; `total` is the plain number of tokens that were encoded.
    return TokenRates(source, counts * (1e6 / counts.sum()), total)


def _encoded(
    tokenizer: Tokenizer, batch: Sequence[WeightedText], source: str
) -> Sequence[Encoding]:
    try:
        return tokenizer.encode_batch_fast([t for t, _ in batch], add_special_tokens=False)
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
    )


def _table_source(name: str, table: str, wanted: Callable[[str], Any] = bool) -> Source:
    """Pieces of running text with their rates; `packaging/words` says where they were counted."""
    path = _TABLES / f"{table}.json.zst"
    # The name tells "English text" from "marks", which is a part of the same file.
    digest = hashlib.sha256(path.read_bytes() + name.encode()).hexdigest()
    return Source(
        name, digest, lambda: _grouped(row for row in _table_rows(path) if wanted(row[0]))
    )


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


def _corpus_source(path: Path) -> Source:
    if not path.is_file():
        raise KPruneError(f"corpus {path} does not exist or is not a file")
    next(read_corpus(path), None)  # a file that cannot be read is refused now, not minutes later
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return Source(
        f"corpus {path.name}", digest, lambda: ((text, 1.0) for text in read_corpus(path))
    )
