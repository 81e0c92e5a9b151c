"""Read files and bodies from outside within limits: bytes, values, nesting.

Whatever kprune reads may be hostile: a model folder, a report, the body of a request. Python's own
parsers have no limits, and 60 MB of `[[],[],…]` become 1.3 GB of objects. Here bytes are counted
before they are read, and values before they are parsed. Whatever reads a whole file of a user or a
model goes through this module. What the values mean is checked by the caller.
"""

import json
import math
import os
import re
import stat
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vllm_kprune.errors import KPruneError, shown
from vllm_kprune.storage.json_shape import JsonShape, measure

__all__ = [
    "LICENCE_BYTES",
    "MODEL_FILE",
    "NOTES",
    "TEMPLATE_BYTES",
    "Limits",
    "Unfit",
    "parse_json",
    "read_bytes",
    "read_object",
    "read_text",
]

LICENCE_BYTES = 4 << 20
TEMPLATE_BYTES = 1 << 20  # the largest published chat templates have 30 kB
_MOST_DIGITS = 40  # tokenizer_config.json often has a model_max_length of 31 digits
_DIGITS = b"0" * (_MOST_DIGITS + 1)
_AS_DIGITS = bytes.maketrans(b"123456789", b"0" * 9)
_HALF_ESCAPED = re.compile(rb"\\u[dD][89a-fA-F]")
_SMALL = 1 << 16  # bytes


class Unfit(KPruneError):
    """Data that cannot be read. The message is the reason alone, for the caller to complete."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How much JSON is read, and how strictly.

    Parsing takes up to 150 bytes of memory for a value (keys of one large object, all different),
    besides long texts, so `values` bounds it. `lenient` accepts what transformers does: NaN and
    Infinity, and equal keys, of which the last one wins. `halves` accepts half of a surrogate pair,
    which no UTF-8 can hold.
    """

    bytes: int
    values: int
    depth: int = 64
    lenient: bool = False
    halves: bool = False


# tokenizer_config.json of Gemma-3, the largest that is known, has 1.2 MB and 45,000 values.
MODEL_FILE = Limits(bytes=16 << 20, values=400_000, lenient=True)
# What kprune itself wrote: records and notes beside its outputs. A loss can be NaN.
NOTES = Limits(bytes=64 << 20, values=4_000_000, lenient=True)


def read_bytes(path: Path, most: int) -> bytes:
    """The content of a regular file of at most `most` bytes."""
    try:
        # A pipe has no size, and to open one may never return.
        if not stat.S_ISREG(path.stat().st_mode):
            raise KPruneError(f"{_name(path)} is not a file")
        with path.open("rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            # Not `most` at once: that much memory would be taken for any file.
            data = stream.read(size + 1) if size <= most else b""
            if len(data) > size:  # it has grown, or is one of the system's, which have no size
                data += stream.read(most + 1 - len(data))
            if max(size, len(data)) > most:
                raise KPruneError(f"{_name(path)} is larger than {_size(most)}")
            return data
    except OSError as error:
        raise KPruneError(f"{_name(path)} cannot be read: {error.strerror or error}") from None


def read_text(path: Path, most: int) -> str:
    """The text of a UTF-8 file of at most `most` bytes, with its line ends as they are."""
    try:
        return read_bytes(path, most).decode()
    except UnicodeDecodeError as error:
        raise KPruneError(
            f"{_name(path)} is not UTF-8 text ({error.reason} at byte {error.start}); convert it"
        ) from None


def read_object(path: Path, limits: Limits) -> dict[str, Any]:
    """The JSON object in a file."""
    try:
        value = parse_json(read_bytes(path, limits.bytes), limits)
    except Unfit as error:
        raise KPruneError(f"{_name(path)} is not readable JSON: {error}") from None
    if not isinstance(value, dict):
        raise KPruneError(f"{_name(path)}: expected a JSON object, got {type(value).__name__}")
    return value


def parse_json(data: bytes | str, limits: Limits) -> Any:
    """The value of a JSON text in UTF-8; `Unfit` for anything else, and beyond a limit.

    >>> parse_json(b'{"a": [1, 2]}', Limits(bytes=100, values=10))
    {'a': [1, 2]}
    >>> parse_json(b"[[[[1]]]]", Limits(bytes=100, values=10, depth=3))
    Traceback (most recent call last):
    vllm_kprune.storage.bounded.Unfit: nested more than 3 levels deep
    """
    try:
        data = data.encode() if isinstance(data, str) else data
        shape = _checked_shape(data, limits)
        value = _parsed(data, limits, shape)
    except (UnicodeError, json.JSONDecodeError) as error:
        raise Unfit(str(error)) from None
    except RecursionError:
        raise Unfit(f"nested more than {limits.depth} levels deep") from None
    if shape is None and _is_deeper(value, limits.depth):
        raise Unfit(f"nested more than {limits.depth} levels deep")
    if not limits.halves and _HALF_ESCAPED.search(data):
        _refuse_half_characters(value)
    return value


def _checked_shape(data: bytes, limits: Limits) -> JsonShape | None:
    """The shape of a text that could be too large; None for one that is small."""
    if len(data) > limits.bytes:
        raise Unfit(f"larger than {_size(limits.bytes)}")
    if len(data) < _SMALL and sum(map(data.count, (b",", b"[", b"{"))) <= limits.values:
        return None
    shape = measure(data)
    if shape.values > limits.values:
        raise Unfit(f"more than {limits.values:,} values")
    if shape.depth > limits.depth:
        raise Unfit(f"nested more than {limits.depth} levels deep")
    return shape


def _parsed(data: bytes, limits: Limits, shape: JsonShape | None) -> Any:
    text, found = data.decode(), 0

    def count(members: dict[str, Any]) -> dict[str, Any]:
        nonlocal found
        found += len(members)
        return members

    # Hooks are called for every value, so there are only those that are needed.
    hooks: dict[str, Any] = {}
    if not limits.lenient:
        hooks = {"parse_constant": _refuse_constant, "parse_float": _finite}
        # For pairs, a tuple is made of each key and value: that takes as long as parsing.
        hooks |= {"object_hook": count} if shape else {"object_pairs_hook": _without_repeats}
    if _DIGITS in data.translate(_AS_DIGITS):
        hooks["parse_int"] = _short
    value = json.loads(text, **hooks)
    if shape and not limits.lenient and found < shape.keys:
        value = None  # two of such a size need not be in memory at once
        json.loads(text, object_pairs_hook=_without_repeats)
    return value


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        [(twice, _)] = Counter(key for key, _ in pairs).most_common(1)
        raise Unfit(f"the key {shown(twice)} occurs twice")
    return found


def _refuse_constant(name: str) -> Any:
    raise Unfit(f"{name} is not a number in JSON")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise Unfit(f"the number {shown(text)} is too large")
    return number


def _short(text: str) -> int:
    # Numbers of thousands of digits overflow where they are used, and cannot even be shown.
    if len(text) > _MOST_DIGITS:
        raise Unfit(f"a number of {len(text):,} digits")
    return int(text)


def _is_deeper(value: Any, most: int) -> bool:
    level = [value] if isinstance(value, dict | list) else []
    for _ in range(most):
        level = [
            item
            for one in level
            for item in (one.values() if isinstance(one, dict) else one)
            if isinstance(item, dict | list)
        ]
    return bool(level)


def _refuse_half_characters(value: Any) -> None:
    # "\ud800" is valid in JSON, but UTF-8 has no bytes for it: writing it later would fail.
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        half = ord(error.object[error.start])
        raise Unfit(f"half a character (\\u{half:04x})") from None


def _name(path: Path) -> str:
    text = str(path)
    return text if len(text) <= 400 else f"{text[:397]}..."


def _size(count: int) -> str:
    """
    >>> _size(64 << 20), _size(64 << 10)
    ('64 MiB', '64 KiB')
    """
    return f"{count >> 20} MiB" if count >= 1 << 20 else f"{count >> 10} KiB"
