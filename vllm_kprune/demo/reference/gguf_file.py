"""Read a GGUF file: its metadata, and where its tensors are.

Why not with the `gguf` package's reader: it visits every array element in Python, which takes 15 s
for a vocabulary of 262,144, and transformers does so several times. This one takes about a second.
Quantised blocks are decoded with that package (`gguf.quants`).
Covers little-endian GGUF 2 and 3. Format: docs/gguf.md in ggml-org/ggml.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from vllm_kprune.errors import KPruneError, shown

__all__ = ["GgufFile", "GgufTensor", "MetaValue", "read_gguf"]

MetaValue = int | float | bool | str | list["MetaValue"]

# By the format's numbers for types of values, as letters of `struct`.
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q"}
_SCALARS[12] = "d"
_STRING, _ARRAY = 8, 9
_DEFAULT_ALIGNMENT = 32
_MOST_ALIGNMENT = 1 << 20


@dataclass(frozen=True)
class GgufTensor:
    """One tensor: its shape with rows first, ggml's number for its type, its offset in the file."""

    name: str
    shape: tuple[int, ...]
    ggml_type: int
    offset: int


@dataclass(frozen=True)
class GgufFile:
    """The header of a GGUF file."""

    path: Path
    metadata: Mapping[str, MetaValue]
    tensors: tuple[GgufTensor, ...]


def read_gguf(path: Path) -> GgufFile:
    """Read the header of a GGUF file.

    Raises:
        KPruneError: the file is not GGUF, is cut off, or has another version.
    """
    if path.stat().st_size == 0:
        raise KPruneError(f"{path.name} is not a GGUF file: it is empty")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        try:
            return _parse(path, _Cursor(data))
        except (struct.error, UnicodeDecodeError, KeyError, RecursionError, OverflowError) as error:
            raise KPruneError(f"{path.name} is not a readable GGUF file ({error})") from error


class _Cursor:
    """A position in the file, which each read moves on."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data = data
        self.at = 0

    def scalars(self, code: str, count: int = 1) -> list[MetaValue]:
        layout = f"<{count}{code}"
        values = struct.unpack_from(layout, self.data, self.at)
        self.at += struct.calcsize(layout)
        return list(values)

    def integer(self, code: str) -> int:
        layout = f"<{code}"
        (value,) = struct.unpack_from(layout, self.data, self.at)
        self.at += struct.calcsize(layout)
        return int(value)

    def string(self) -> str:
        length = self.integer("Q")
        self.at += length
        # A slice of a map silently ends early, so a length that is too large must be noticed here.
        if self.at > len(self.data):
            raise struct.error("a string reaches past the end of the file")
        return self.data[self.at - length : self.at].decode("utf-8")

    def value(self, kind: int) -> MetaValue:
        if kind == _STRING:
            return self.string()
        if kind != _ARRAY:
            return self.scalars(_SCALARS[kind])[0]
        item_kind, count = self.integer("I"), self.integer("Q")
        if item_kind in _SCALARS:
            return self.scalars(_SCALARS[item_kind], count)
        return [self.value(item_kind) for _ in range(count)]


def _parse(path: Path, cursor: _Cursor) -> GgufFile:
    magic, version = cursor.data[:4], 0
    cursor.at = 4
    if magic != b"GGUF" or (version := cursor.integer("I")) not in (2, 3):
        raise KPruneError(
            f"{path.name} is not a GGUF file of version 2 or 3 (it starts with {magic!r}, "
            f"version {version})"
        )
    num_tensors, num_values = cursor.integer("Q"), cursor.integer("Q")
    metadata: dict[str, MetaValue] = {}
    for _ in range(num_values):
        key = cursor.string()
        metadata[key] = cursor.value(cursor.integer("I"))
    found = []
    for _ in range(num_tensors):
        name = cursor.string()
        dims = [cursor.integer("Q") for _ in range(cursor.integer("I"))]
        # GGUF lists the dimension that varies fastest first, numpy last.
        found.append((name, tuple(reversed(dims)), cursor.integer("I"), cursor.integer("Q")))
    alignment = metadata.get("general.alignment", _DEFAULT_ALIGNMENT)
    if type(alignment) is not int or not 0 < alignment <= _MOST_ALIGNMENT:
        raise KPruneError(f"{path.name} is not a readable GGUF file (alignment {shown(alignment)})")
    # Rounded up: tensor offsets count from the next multiple of the alignment.
    start = -(-cursor.at // alignment) * alignment
    tensors = (GgufTensor(name, shape, kind, start + at) for name, shape, kind, at in found)
    return GgufFile(path, metadata, tuple(tensors))
