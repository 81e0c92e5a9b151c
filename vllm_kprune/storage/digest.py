"""SHA-256 of files, remembered by size and modification time.

Weights are gigabytes: they are read once, when an overlay is built. Later starts compare size and
modification time. They read the content again only if the time differs, as after a copy or `touch`.
"""

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from vllm_kprune.progress import BytesDone
from vllm_kprune.storage.bounded import read_bytes
from vllm_kprune.storage.folders import new_file

__all__ = [
    "FileDigest",
    "canonical_json",
    "digest_file",
    "digest_text",
    "remembered_digest",
    "sha256_file",
]

_BLOCK_BYTES = 1 << 22
_NOTE_BYTES = 1 << 12


class FileDigest(BaseModel):
    """A file's size in bytes, modification time in ns, and SHA-256."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    size: Annotated[int, Field(ge=0)]
    mtime_ns: int
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]

    def matches(self, path: Path, *, whole: bool = False, advance: BytesDone | None = None) -> bool:
        """Has the file `path` this content?

        Without `whole`, it is read only if its modification time differs.
        """
        stat = path.stat()
        if stat.st_size != self.size:
            return False
        # An edit that keeps size and time is not noticed: that is the price of quick starts.
        unread = stat.st_mtime_ns == self.mtime_ns and not whole
        return unread or sha256_file(path, advance) == self.sha256


def sha256_file(path: Path, advance: BytesDone | None = None) -> str:
    """SHA-256 of a file, read in blocks of 4 MiB; `advance` is called after each."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(_BLOCK_BYTES):
            digest.update(block)
            if advance:
                advance(len(block))
    return digest.hexdigest()


def digest_file(path: Path, advance: BytesDone | None = None) -> FileDigest:
    """Read a whole file and describe it."""
    stat = path.stat()
    return FileDigest(
        size=stat.st_size, mtime_ns=stat.st_mtime_ns, sha256=sha256_file(path, advance)
    )


def remembered_digest(path: Path, memory: Path, advance: BytesDone | None = None) -> FileDigest:
    """Like `digest_file`, but reads a file only once: the folder `memory` keeps its digest.

    A digest is remembered for this path, size and modification time.
    """
    stat = path.stat()
    key = f"{path.resolve()}\0{stat.st_size}\0{stat.st_mtime_ns}"
    # A NUL byte separates: no path contains one, so no two keys read alike.
    note = memory / f"{digest_text(key)}.json"
    try:
        known = FileDigest.model_validate_json(read_bytes(note, _NOTE_BYTES))
        # They differ if the file changed after its key was made: `digest_file` looks at it again.
        if (known.size, known.mtime_ns) == (stat.st_size, stat.st_mtime_ns):
            return known
    except (OSError, ValueError):
        pass  # not remembered, or the note is damaged: read the file
    digest = digest_file(path, advance)
    # A disk that is full or cannot be written costs the next run a second reading, no more.
    with suppress(OSError), new_file(note) as stream:
        stream.write(digest.model_dump_json().encode())
    return digest


def digest_text(text: str) -> str:
    """SHA-256 of a text's UTF-8 bytes."""
    return hashlib.sha256(text.encode()).hexdigest()


def canonical_json(value: Mapping[str, Any]) -> str:
    """JSON with sorted keys and no spaces: the same value always gives the same bytes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
