"""Evidence: how often each token of the original vocabulary occurs in a profile's languages.

Sources are word lists with frequencies (`wordfreq`), source code that is on every machine (Python's
standard library) and corpora of the user's own. Each is streamed in batches, so memory does not
grow with it, and each gives rates (occurrences per million tokens of that source), so a long corpus
does not drown a short one. Words are counted in the forms that running text has: after a space,
capitalised, in upper case.
"""

import gzip
import hashlib
import importlib.metadata
import importlib.util
import itertools
import json
import sysconfig
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import wordfreq
import zstandard
from tokenizers import Tokenizer

from vllm_kprune.errors import KPruneError
from vllm_kprune.profile import LANGUAGES, Profile

__all__ = [
    "Source",
    "TokenRates",
    "WeightedText",
    "count_source",
    "profile_sources",
    "read_corpus",
    "weighted_batches",
    "word_forms",
]

WeightedText = tuple[str, float]

_BATCH_TEXTS = 8192
_BATCH_CHARACTERS = 1 << 20
_LINE_CHARACTERS = 1 << 16
_CORPUS_CHARACTERS = 100_000_000
_CODE_CHARACTERS = 3_500_000
_COMMON_WORDS, _KNOWN_WORDS = 30_000, 120_000

# Packages that kprune itself needs, so that their sources are wherever it runs.
_CODE_PACKAGES = ("huggingface_hub", "numpy", "pydantic", "rich", "typer", "yaml")
_PACKAGE_CHARACTERS = 400_000

# Share of a word's occurrences in running text and code, by form. What matters is that no form is
# forgotten; short words are often acronyms.
_FORMS: tuple[tuple[Callable[[str], str], float], ...] = (
    (lambda word: f" {word}", 0.74),
    (lambda word: f" {word.capitalize()}", 0.12),
    (lambda word: word, 0.05),
    (lambda word: word.capitalize(), 0.05),
)
_UPPER_SHARE, _UPPER_SHARE_SHORT, _SHORT_WORD = 0.02, 0.10, 4


@dataclass(frozen=True)
class Source:
    """Texts with weights: a `name` for people, a `digest` that pins the content, and a stream."""

    name: str
    digest: str
    texts: Callable[[], Iterator[WeightedText]]


@dataclass(frozen=True)
class TokenRates:
    """Occurrences of each token id per million tokens of one source (float64 [ids])."""

    source: Source
    per_million: npt.NDArray[np.float64]
    tokens: int


def profile_sources(profile: Profile, corpora: Sequence[Path] = ()) -> list[Source]:
    """The sources for a profile: its languages' word lists, code, and the user's corpora."""
    lists = [LANGUAGES[code].wordlist for code in profile.languages]
    sources = [_wordlist_source(name) for name in lists if name]
    if profile.code:
        sources.append(_code_source())
    return sources + [_corpus_source(path) for path in corpora]


def count_source(tokenizer: Tokenizer, source: Source, size: int) -> TokenRates:
    """Encode a source and count its tokens; `size` is one more than the largest id."""
    counts = np.zeros(size)
    total = 0
    for batch in weighted_batches(source.texts()):
        encodings = tokenizer.encode_batch_fast([t for t, _ in batch], add_special_tokens=False)
        lengths = [len(encoding) for encoding in encodings]
        ids = np.fromiter(itertools.chain.from_iterable(e.ids for e in encodings), dtype=np.int64)
        weights = np.repeat([weight for _, weight in batch], lengths)
        counts += np.bincount(ids, weights=weights, minlength=size)
        total += len(ids)
    if not total:
        raise KPruneError(f"{source.name} holds no text to count")
    return TokenRates(source, counts * (1e6 / counts.sum()), total)


def weighted_batches(
    texts: Iterable[WeightedText], most: int | None = None
) -> Iterator[list[WeightedText]]:
    """Group the first `most` texts (all without) into batches of bounded size for encoding."""
    batch: list[WeightedText] = []
    characters = 0
    for text, weight in itertools.islice(texts, most):
        batch.append((text, weight))
        characters += len(text)
        if len(batch) >= _BATCH_TEXTS or characters >= _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _wordlist_source(language: str) -> Source:
    version = importlib.metadata.version("wordfreq")
    name = f"word list {language}"
    return Source(name, f"wordfreq {version} {language}", lambda: word_forms(language))


def word_forms(language: str) -> Iterator[WeightedText]:
    """The words of a `wordfreq` list, frequent ones first, in the forms of running text."""
    frequencies = wordfreq.get_frequency_dict(language, wordlist="best")
    for rank, (word, frequency) in enumerate(frequencies.items()):
        if word.capitalize() == word:
            yield f" {word}", frequency * 0.9
            yield word, frequency * 0.1
        elif rank < _COMMON_WORDS:
            for form, share in _FORMS:
                yield form(word), frequency * share
            upper = _UPPER_SHARE_SHORT if len(word) <= _SHORT_WORD else _UPPER_SHARE
            yield f" {word.upper()}", frequency * upper
            yield word.upper(), frequency * upper * 0.5
        elif rank < _KNOWN_WORDS:
            yield f" {word}", frequency * 0.6
            yield f" {word.capitalize()}", frequency * 0.4
        else:
            yield f" {word.capitalize()}", frequency  # rare words are names, most of them


def _code_source() -> Source:
    files = list(_code_files())
    digest = hashlib.sha256(b"".join(hashlib.sha256(p.read_bytes()).digest() for p in files))

    def texts() -> Iterator[WeightedText]:
        for path in files:
            yield path.read_text(encoding="utf-8", errors="replace"), 1.0

    return Source("source code", digest.hexdigest(), texts)


def _code_files() -> Iterator[Path]:
    """Python sources in a fixed order, up to a bound for each library; tests left out."""
    library = Path(sysconfig.get_path("stdlib"))
    yield from _bounded([*library.glob("*.py"), *library.glob("*/*.py")], _CODE_CHARACTERS)
    for package in _CODE_PACKAGES:
        spec = importlib.util.find_spec(package)
        if spec is not None and spec.origin:
            yield from _bounded(Path(spec.origin).parent.rglob("*.py"), _PACKAGE_CHARACTERS)


def _bounded(paths: Iterable[Path], characters: int) -> Iterator[Path]:
    skipped = {"site-packages", "test", "tests", "idlelib", "lib2to3"}
    for path in sorted(paths, key=lambda path: (len(path.parts), path)):
        if skipped.isdisjoint(path.parts[-3:]):
            characters -= path.stat().st_size
            if characters < 0:
                return
            yield path


def _corpus_source(path: Path) -> Source:
    if not path.is_file():
        raise KPruneError(f"corpus {path} does not exist or is not a file")
    next(read_corpus(path), None)
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return Source(
        f"corpus {path.name}", digest, lambda: ((text, 1.0) for text in read_corpus(path))
    )


def read_corpus(path: Path) -> Iterator[str]:
    """Stream a corpus: .jsonl gives its strings, anything else its lines; .gz and .zst are opened.

    Line ends are kept, because text has them. Reads 100 million characters at most: rates no longer
    move beyond that. Raises `KPruneError` for binary or damaged files.
    """
    left = _CORPUS_CHARACTERS
    try:
        for text in _corpus_texts(path):
            yield text
            left -= len(text)
            if left <= 0:
                return
    except UnicodeDecodeError as error:
        raise KPruneError(
            f"corpus {path} is not UTF-8 text ({error.reason} at byte {error.start} of a block); "
            "convert it, or leave it out"
        ) from None
    except (OSError, EOFError, zstandard.ZstdError) as error:
        raise KPruneError(f"corpus {path} cannot be read: {error}") from None


def _corpus_texts(path: Path) -> Iterator[str]:
    jsonl = ".jsonl" in path.suffixes
    with _open_text(path) as stream:
        for number in itertools.count(1):
            line = stream.readline(_LINE_CHARACTERS if not jsonl else _BATCH_CHARACTERS)
            if not line:
                return
            if "\0" in line:
                raise KPruneError(f"corpus {path} is binary (a NUL byte in line {number})")
            if jsonl:
                yield from _json_strings(line, path, number)
            else:
                yield line


def _json_strings(line: str, path: Path, number: int) -> Iterator[str]:
    if not line.strip():
        return
    try:
        yield from _strings(json.loads(line))
    except (json.JSONDecodeError, RecursionError) as error:
        raise KPruneError(f"corpus {path}, line {number}: not JSON: {error}") from None


def _strings(value: Any) -> Iterator[str]:
    """Every string in a JSON value; only `text` of an object that has it."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        text = value.get("text")
        values = [text] if isinstance(text, str) else list(value.values())
        yield from itertools.chain.from_iterable(map(_strings, values))
    elif isinstance(value, list):
        yield from itertools.chain.from_iterable(map(_strings, value))


def _open_text(path: Path) -> IO[str]:
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8", newline="")
    if path.suffix == ".zst":
        stream: IO[str] = zstandard.open(path, "rt", encoding="utf-8", newline="")
        return stream
    return path.open(encoding="utf-8", newline="")
