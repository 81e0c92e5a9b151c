"""Read the rows of a user's JSONL file, with errors that name the line."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vllm_kprune.errors import KPruneError

__all__ = ["read_jsonl", "text_lines"]

_MOST_BYTES = 200 * 2**20


def read_jsonl(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line number (from 1) and object of each non-empty line."""
    for number, line in enumerate(text_lines(path), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            # Fails on half a character here, where the line is known, instead of in a request.
            json.dumps(row, ensure_ascii=False).encode()
        # Before ValueError, of which it is a subclass.
        except UnicodeEncodeError as error:
            half = f"{ord(error.object[error.start]):04x}"
            raise KPruneError(
                f"{path}:{number} has half a character (\\u{half}); write the complete character"
            ) from None
        except (ValueError, RecursionError) as error:
            raise KPruneError(f"{path}:{number} is not JSON: {error}") from None
        if not isinstance(row, dict):
            raise KPruneError(f"{path}:{number} is a {type(row).__name__}, expected an object")
        yield number, row


def text_lines(path: Path) -> list[str]:
    """The lines of a UTF-8 file; as in JSONL, only a line feed ends a line."""
    if not path.is_file():
        raise KPruneError(f"there is no file {path}")
    if path.stat().st_size > _MOST_BYTES:
        raise KPruneError(f"{path} is larger than {_MOST_BYTES:,} bytes; use a part of it")
    try:
        return path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise KPruneError(f"{path} is not UTF-8: {error}") from None
