"""Read the rows of a user's JSONL file, with errors that name the line."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vllm_kprune.errors import KPruneError
from vllm_kprune.storage.bounded import Limits, Unfit, parse_json, read_text

__all__ = ["read_jsonl", "text_lines"]

_MOST_BYTES = 200 << 20
_RECORD = Limits(bytes=16 << 20, values=400_000)


def read_jsonl(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line number (from 1) and object of each non-empty line."""
    for number, line in enumerate(text_lines(path), 1):
        if not line.strip():
            continue
        try:
            row = parse_json(line, _RECORD)
        except Unfit as error:
            raise KPruneError(f"{path}:{number} is not JSON: {error}") from None
        if not isinstance(row, dict):
            raise KPruneError(f"{path}:{number} is a {type(row).__name__}, expected an object")
        yield number, row


def text_lines(path: Path) -> list[str]:
    """The lines of a UTF-8 file; as in JSONL, only a line feed ends a line."""
    if not path.is_file():
        raise KPruneError(f"there is no file {path}")
    return read_text(path, _MOST_BYTES).removeprefix("\ufeff").split("\n")
