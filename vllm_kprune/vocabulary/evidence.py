"""Evidence: how often each token of the original vocabulary occurs in a profile's languages.

Sources are word lists with frequencies (`wordfreq`), tables of English text and source code as they
are written (`words/`; made by `packaging/words`), and corpora of the user's own. Each is streamed
in batches, so memory does not grow with it, and each gives rates (occurrences per million tokens of
that source), so a long corpus does not drown a short one. Words of a list are counted in the forms
that running text has: after a space, capitalised, in upper case.
"""

import gzip
import hashlib
import importlib.metadata
import importlib.resources
import itertools
import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO, Any

import msgpack
import numpy as np
import numpy.typing as npt
import regex
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
    "simplified_characters",
    "weighted_batches",
    "word_forms",
]

WeightedText = tuple[str, float]

_BATCH_TEXTS = 8192
_BATCH_CHARACTERS = 1 << 20
_LINE_CHARACTERS = 1 << 16
_RECORD_CHARACTERS = 1 << 26
_CORPUS_CHARACTERS = 100_000_000
_TABLES = Path(__file__).parent / "words"
_SPACED_WORD = regex.compile(r" \p{L}+")
_MARKS = regex.compile(r"[^\p{L}\p{N}]+")

# Words of neighbouring frequency are encoded together, which halves the time. What joins them keeps
# them apart: a space begins a new token, and so does a line.
_GROUP_WORDS = 16
# English has a table of text that knows its words better; other languages have the list alone, but
# what Korean has of its own script is kept whatever its frequency.
_WORDS_WEIGHT = {"en": 0.6, "ko": 3.0}
_COMMON_WORDS, _KNOWN_WORDS, _SHORT_WORD = 30_000, 120_000, 4


@dataclass(frozen=True)
class Source:
    """Texts with weights: a `name` for people, a `digest` that pins the content, and a stream.

    A word list also gives its `words` in lower case with their frequencies, as shares of text; they
    weigh less (`words_weight`) where another source has the same words as they are written.
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
    per_million: npt.NDArray[np.float64]
    tokens: int


def profile_sources(profile: Profile, corpora: Sequence[Path] = ()) -> list[Source]:
    """The sources for a profile: word lists, tables of text, and the user's corpora.

    Without English and code there is no other text with marks: those of English stand in.
    """
    lists = [LANGUAGES[code].wordlist for code in profile.languages]
    sources = [_wordlist_source(name) for name in lists if name]
    if "en" in profile.languages:
        sources.append(_table_source("English text", "english"))
    if profile.code:
        sources.append(_table_source("source code", "code"))
    elif "en" not in profile.languages:
        sources.append(_table_source("marks", "english", wanted=_MARKS.fullmatch))
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
    return Source(
        name,
        f"wordfreq {version} {language}",
        lambda: word_forms(language),
        lambda: _word_frequencies(language),
        words_weight=_WORDS_WEIGHT.get(language, 12.0),
    )


def _word_frequencies(language: str) -> Mapping[str, float]:
    words: dict[str, float] = wordfreq.get_frequency_dict(language, wordlist="best")
    return _EitherChinese(words) if language == "zh" else words


@cache
def simplified_characters() -> Mapping[int, str]:
    """Simplified form of traditional Chinese characters, for `str.translate`: wordfreq's table."""
    path = importlib.resources.files(wordfreq) / "data" / "_chinese_mapping.msgpack.gz"
    table: dict[int, str] = msgpack.unpackb(
        gzip.decompress(path.read_bytes()), strict_map_key=False
    )
    return table


class _EitherChinese(Mapping[str, float]):
    """Words of wordfreq's Chinese list, which is in simplified characters, found in either.

    A traditional word has the frequency of its simplified one, by wordfreq's own table.
    """

    def __init__(self, words: Mapping[str, float]) -> None:
        self._simplified = simplified_characters()
        self._words = words

    def __getitem__(self, word: str) -> float:
        return self._words[word.translate(self._simplified)]

    def __iter__(self) -> Iterator[str]:
        return iter(self._words)

    def __len__(self) -> int:
        return len(self._words)


def word_forms(language: str) -> Iterator[WeightedText]:
    """The words of a `wordfreq` list, frequent ones first, in the forms of running text.

    Shares of the forms are estimates; what matters is that none is forgotten. Short words are often
    acronyms, rare ones names.
    """
    for rank, words, frequency in _word_groups(language):
        cased = [word for word in words if word.capitalize() != word]
        capitalised = [word.capitalize() for word in cased]
        other = [word for word in words if word.capitalize() == word]
        forms = [(_spaced(other), 0.9), (_lines(other), 0.1)]
        if rank < _COMMON_WORDS:
            short = [word.upper() for word in cased if len(word) <= _SHORT_WORD]
            upper = [word.upper() for word in cased if len(word) > _SHORT_WORD]
            forms += [(_spaced(cased), 0.8), (_spaced(capitalised), 0.12)]
            forms += [(_lines(cased), 0.05), (_lines(capitalised), 0.05)]
            forms += [(_spaced(short), 0.1), (_lines(short), 0.05), (_spaced(upper), 0.02)]
        elif rank < _KNOWN_WORDS:
            forms += [(_spaced(cased), 0.6), (_spaced(capitalised), 0.4)]
        else:
            forms += [(_spaced(capitalised), 1.0)]
        yield from ((text, frequency * share) for text, share in forms if text)


def _word_groups(language: str) -> Iterator[tuple[int, list[str], float]]:
    """Rank, words and mean frequency of groups of neighbours in a word list."""
    frequencies = wordfreq.get_frequency_dict(language, wordlist="best")
    ranked = iter(frequencies.items())
    for rank in range(0, len(frequencies), _GROUP_WORDS):
        group = list(itertools.islice(ranked, _GROUP_WORDS))
        mean = sum(frequency for _, frequency in group) / len(group)
        yield rank, [word for word, _ in group], mean


def _spaced(words: Sequence[str]) -> str:
    return "".join(f" {word}" for word in words)


def _lines(words: Sequence[str]) -> str:
    return "\n".join(words)


def _table_source(name: str, table: str, wanted: Callable[[str], Any] = bool) -> Source:
    """Pieces of running text with their rates: `packaging/words` says what they were counted in."""
    path = _TABLES / f"{table}.json.zst"
    digest = hashlib.sha256(path.read_bytes() + name.encode()).hexdigest()
    return Source(
        name, digest, lambda: _grouped(row for row in _table_rows(path) if wanted(row[0]))
    )


def _table_rows(path: Path) -> Iterator[WeightedText]:
    with zstandard.open(path, "rt", encoding="utf-8") as stream:
        table = json.load(stream)
    return zip(table["pieces"], table["rates"], strict=True)


def _grouped(rows: Iterable[WeightedText]) -> Iterator[WeightedText]:
    """Join words of neighbouring rates that have a space before them; others stand alone."""
    words: list[WeightedText] = []
    for piece, rate in rows:
        if not _SPACED_WORD.fullmatch(piece):
            yield piece, rate
            continue
        words.append((piece, rate))
        if len(words) == _GROUP_WORDS:
            yield _joined(words)
            words = []
    if words:
        yield _joined(words)


def _joined(words: Sequence[WeightedText]) -> WeightedText:
    mean = sum(rate for _, rate in words) / len(words)
    return "".join(word for word, _ in words), mean


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
    except (OSError, EOFError, zlib.error, zstandard.ZstdError) as error:
        raise KPruneError(f"corpus {path} cannot be read: {error}") from None


def _corpus_texts(path: Path) -> Iterator[str]:
    jsonl = ".jsonl" in path.suffixes
    with _open_text(path) as stream:
        for number in itertools.count(1):
            line = stream.readline(_RECORD_CHARACTERS if jsonl else _LINE_CHARACTERS)
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
    except (ValueError, RecursionError) as error:
        raise KPruneError(f"corpus {path}, line {number}: not JSON: {error}") from None


def _strings(value: Any) -> Iterator[str]:
    """Every string in a JSON value; only `text` of an object that has it."""
    if isinstance(value, str):
        yield value.encode(errors="replace").decode()  # JSON may spell lone surrogates
    elif isinstance(value, dict):
        text = value.get("text")
        values = [text] if isinstance(text, str) else list(value.values())
        yield from itertools.chain.from_iterable(map(_strings, values))
    elif isinstance(value, list):
        yield from itertools.chain.from_iterable(map(_strings, value))


def _open_text(path: Path) -> IO[str]:
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8-sig", newline="")
    if path.suffix == ".zst":
        stream: IO[str] = zstandard.open(path, "rt", encoding="utf-8-sig", newline="")
        return stream
    return path.open(encoding="utf-8-sig", newline="")
