"""Stream a user's own text: plain text or JSON lines, compressed or not."""

import gzip
import itertools
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import zstandard

from vllm_kprune.errors import KPruneError
from vllm_kprune.storage.bounded import Limits, Unfit, parse_json

__all__ = ["read_corpus"]

# A line of text may be cut anywhere, so a file that is one huge line does no harm. A JSON record
# must be read whole.
_LINE_CHARACTERS = 1 << 16
_RECORD = Limits(bytes=16 << 20, values=400_000, lenient=True, halves=True)
_MOST_CHARACTERS = 100_000_000


def read_corpus(path: Path) -> Iterator[str]:
    """Stream the texts of a corpus: the strings of a .jsonl file, the lines of any other.

    Files that end in .gz or .zst are decompressed. Lines keep their line ends, because running text
    has them. Reads at most 100 million characters: beyond that, rates no longer change. Raises
    `KPruneError` for binary or damaged files.
    """
    left = _MOST_CHARACTERS
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
            # With a limit, a line without end cannot fill the memory.
            line = stream.readline(_RECORD.bytes if jsonl else _LINE_CHARACTERS)
            if not line:
                return
            # Binary data can be valid UTF-8, but text has no NUL.
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
        value = parse_json(line, _RECORD)
    except Unfit as error:
        raise KPruneError(f"corpus {path}, line {number}: not JSON: {error}") from None
    yield from _strings(value)


def _strings(value: Any) -> Iterator[str]:
    """Every string in a JSON value; of an object with a string `text`, only that."""
    if isinstance(value, str):
        yield value.encode(errors="replace").decode()  # JSON can hold lone surrogates
    elif isinstance(value, dict):
        text = value.get("text")
        # Data sets keep metadata (addresses, ids) beside `text`; it must not count as text.
        values = [text] if isinstance(text, str) else list(value.values())
        yield from itertools.chain.from_iterable(map(_strings, values))
    elif isinstance(value, list):
        yield from itertools.chain.from_iterable(map(_strings, value))


def _open_text(path: Path) -> IO[str]:
    if path.suffix == ".gz":
        # utf-8-sig drops a byte order mark; newline="" keeps \r\n, as a prompt would.
        return gzip.open(path, "rt", encoding="utf-8-sig", newline="")
    if path.suffix == ".zst":
        stream: IO[str] = zstandard.open(path, "rt", encoding="utf-8-sig", newline="")
        return stream
    return path.open(encoding="utf-8-sig", newline="")
