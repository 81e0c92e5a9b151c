"""Cut the vocabulary tensors of a safetensors file to their kept rows, streamed to a new file.

The format is simple: 8 bytes with the length of a JSON header, the header (tensor name -> data
type, shape and place of its data), then the data. Rows are copied as bytes, so any data type is
kept bit for bit, and memory is bounded by one block whatever the size of the model.
"""

import itertools
import json
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from vllm_kprune.errors import KPruneError, shown
from vllm_kprune.progress import BytesDone
from vllm_kprune.storage.bounded import Limits, Unfit, parse_json

__all__ = [
    "BLOCK_BYTES",
    "RowCut",
    "Shard",
    "StoredTensor",
    "copy_file",
    "cut_size",
    "read_shard",
    "write_cut",
]

BLOCK_BYTES = 4 << 20
# A tensor takes about 8 values and 150 bytes. The safetensors library reads headers of 100 MB.
_HEADER = Limits(bytes=64 << 20, values=1_600_000)
_MOST_DIMENSIONS = 16
_MOST_BYTES = 1 << 50
_MOST_NAME = 1_000  # characters
_MOST_REASON = 300
_DTYPE = re.compile(r"[A-Z][A-Z0-9_]{1,15}")
_METADATA = "__metadata__"


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file. Its data begins at `offset`, counted from the start of the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    bytes: int

    @property
    def parameters(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def row_bytes(self) -> int:
        """Bytes of one row (dimension 0)."""
        return self.bytes // self.shape[0]


@dataclass(frozen=True)
class Shard:
    """A safetensors file: its tensors in the order of their data, and its metadata, if any."""

    path: Path
    tensors: tuple[StoredTensor, ...]
    metadata: Mapping[str, str] | None


@dataclass(frozen=True)
class RowCut:
    """Which tensors lose rows: of `original_rows`, `tensors` keep `rows`, in increasing order."""

    tensors: frozenset[str]
    original_rows: int
    rows: tuple[int, ...]

    def runs(self) -> Iterator[tuple[int, int]]:
        """Runs of neighbouring kept rows: (first row, number of rows).

        >>> list(RowCut(frozenset(), 9, (0, 1, 2, 7)).runs())
        [(0, 3), (7, 1)]
        """
        first = count = 0
        for row in self.rows:
            if count and row == first + count:
                count += 1
                continue
            if count:
                yield first, count
            first, count = row, 1
        if count:
            yield first, count

    def touches(self, shard: Shard) -> bool:
        """Does the file have a tensor that loses rows?"""
        return any(tensor.name in self.tensors for tensor in shard.tensors)

    def shape(self, tensor: StoredTensor) -> tuple[int, ...]:
        """The tensor's shape afterwards."""
        if tensor.name not in self.tensors:
            return tensor.shape
        return (len(self.rows), *tensor.shape[1:])

    def bytes(self, tensor: StoredTensor) -> int:
        """Bytes of the tensor's data afterwards."""
        if tensor.name not in self.tensors:
            return tensor.bytes
        return len(self.rows) * tensor.row_bytes

    def ranges(self, tensor: StoredTensor) -> Iterator[tuple[int, int]]:
        """Ranges of the original file whose bytes are kept: (offset, count)."""
        if tensor.name not in self.tensors:
            yield tensor.offset, tensor.bytes
            return
        width = tensor.row_bytes
        for first, count in self.runs():
            # The runs (0, 3) and (7, 1) of rows of 4 bytes are the ranges (0, 12) and (28, 4) of
            # the tensor.
            yield tensor.offset + first * width, count * width

    def check(self, shard: Shard) -> None:
        """Raise `KPruneError` if a tensor that loses rows does not have `original_rows`."""
        for tensor in shard.tensors:
            if tensor.name not in self.tensors:
                continue
            # Rows of 4-bit elements may begin within a byte, where nothing can be cut.
            if tensor.shape[:1] != (self.original_rows,) or tensor.bytes % self.original_rows:
                raise KPruneError(
                    f"{shard.path}: {tensor.name} is {tensor.dtype}{list(tensor.shape)}; expected "
                    f"{self.original_rows} rows of whole bytes; build the overlay again"
                )


def read_shard(path: Path) -> Shard:
    """Read a file's header and check that its tensors fill the rest of the file exactly."""
    try:
        header, begin, size = _read_header(path)
        metadata = _checked_metadata(header.pop(_METADATA, None))
        tensors = sorted(
            (_stored_tensor(name, entry, begin) for name, entry in header.items()),
            # An empty tensor shares its offset with the next one and must stand before it, or the
            # ends below would not match.
            key=lambda tensor: (tensor.offset, tensor.bytes),
        )
        # Each tensor must begin where the one before ends. So no offset of a hostile header points
        # out of the file, and no bytes hide between tensors.
        ends = [begin, *(tensor.offset + tensor.bytes for tensor in tensors)]
        if [tensor.offset for tensor in tensors] != ends[:-1] or ends[-1] != size:
            raise ValueError("its tensors overlap, leave gaps, or end before or after the file")
    except Unfit as error:
        raise KPruneError(
            f"{path} is not a readable safetensors file: its header: {error}"
        ) from None
    except KeyError as error:
        raise KPruneError(
            f"{path} is not a readable safetensors file: a tensor has no {error}"
        ) from None
    except (OSError, TypeError, ValueError) as error:
        reason = str(error)[:_MOST_REASON]
        raise KPruneError(f"{path} is not a readable safetensors file: {reason}") from None
    return Shard(path, tuple(tensors), metadata)


def cut_size(shard: Shard, cut: RowCut) -> int:
    """Bytes of the file that `write_cut` writes."""
    return len(_header(shard, cut)) + sum(map(cut.bytes, shard.tensors))


def write_cut(shard: Shard, cut: RowCut, target: Path, advance: BytesDone | None = None) -> None:
    """Write the cut file to `target`. `advance` is called after each block."""
    # Kept rows come in many short runs, so writing is buffered; `pread` goes past Python's buffer.
    with shard.path.open("rb", buffering=0) as source, target.open("wb", BLOCK_BYTES) as sink:
        sink.write(_header(shard, cut))
        for tensor in _in_order(shard):
            for offset, count in cut.ranges(tensor):
                _copy_range(source.fileno(), offset, count, sink, advance)


def copy_file(path: Path, target: Path, advance: BytesDone | None = None) -> None:
    """Copy a file's content."""
    with path.open("rb", buffering=0) as source, target.open("wb", buffering=0) as sink:
        _copy_range(source.fileno(), 0, path.stat().st_size, sink, advance)


def _copy_range(
    source: int, offset: int, count: int, sink: BinaryIO, advance: BytesDone | None
) -> None:
    end = offset + count
    while offset < end:
        # May return less than was asked for; only an empty block means the end of the file.
        block = os.pread(source, min(BLOCK_BYTES, end - offset), offset)
        if not block:
            raise KPruneError("a weight file became shorter while it was read; try again")
        sink.write(block)
        offset += len(block)
        if advance:
            advance(len(block))


def _read_header(path: Path) -> tuple[dict[str, Any], int, int]:
    """The parsed header, where the data begins, and the file's size."""
    with path.open("rb") as stream:
        size = os.fstat(stream.fileno()).st_size
        length = int.from_bytes(stream.read(8), "little")
        # Before the header is read: a hostile length could ask for any amount of memory. A file of
        # less than 8 bytes fails here as well.
        if length > min(_HEADER.bytes, size - 8):
            raise ValueError(f"its header cannot have {length} bytes")
        header = parse_json(stream.read(length), _HEADER)
    if not isinstance(header, dict):
        raise ValueError("its header is not a JSON object")
    return header, 8 + length, size


def _checked_metadata(value: Any) -> Mapping[str, str] | None:
    texts = value.values() if isinstance(value, dict) else [None]
    if value is not None and not all(isinstance(text, str) for text in texts):
        raise ValueError(f"its metadata is {shown(value)}, expected texts by name")
    return value if isinstance(value, dict) else None


def _stored_tensor(name: str, entry: Mapping[str, Any], begin: int) -> StoredTensor:
    if len(name) > _MOST_NAME or not isinstance(entry, dict):
        raise ValueError(f"the tensor {shown(name)} is {shown(entry)}")
    dtype = entry["dtype"]
    if not isinstance(dtype, str) or not _DTYPE.fullmatch(dtype):
        raise ValueError(f"{name} has the data type {shown(dtype)}")
    (start, end), shape = entry["data_offsets"], tuple(entry["shape"])
    # Products of such numbers stay small, and are numbers for every library.
    whole = all(type(n) is int and 0 <= n < _MOST_BYTES for n in (start, end, *shape))
    if not whole or start > end or len(shape) > _MOST_DIMENSIONS:
        places = f"shape {shown(list(shape))} and data_offsets {shown([start, end])}"
        raise ValueError(f"{name} has the {places}")
    # Rounded up: elements of 4 bits share bytes, so three of F4 take 2 bytes.
    if end - start != -(-math.prod(shape) * _bits(dtype) // 8):
        raise ValueError(f"{name} has {end - start} bytes for {dtype}{list(shape)}")
    return StoredTensor(name, dtype, shape, begin + start, end - start)


def _bits(dtype: str) -> int:
    """Bits of an element: BF16 -> 16, F8_E4M3 -> 8, F4 -> 4."""
    # Letters in front go, then digits until the next letter or "_": the E4M3 of F8_E4M3 does not
    # count. BOOL has no digits.
    digits = "".join(itertools.takewhile(str.isdigit, dtype.lstrip("BCFIU")))
    return int(digits) if digits else 8  # BOOL


def _in_order(shard: Shard) -> Sequence[StoredTensor]:
    """The tensors in the order of writing: wider elements first, so that all are aligned.

    The usual libraries write files in this order too; for those, nothing is reordered.
    """
    # Stable: tensors of the same width stay in the order of the file.
    return sorted(shard.tensors, key=lambda tensor: -_bits(tensor.dtype))


def _header(shard: Shard, cut: RowCut) -> bytes:
    """The header of the cut file after its length, padded so that the data begins aligned."""
    header: dict[str, Any] = {} if shard.metadata is None else {_METADATA: shard.metadata}
    offset = 0
    for tensor in _in_order(shard):
        end = offset + cut.bytes(tensor)
        place = {"shape": list(cut.shape(tensor)), "data_offsets": [offset, end]}
        header[tensor.name] = {"dtype": tensor.dtype, **place}
        offset = end
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
