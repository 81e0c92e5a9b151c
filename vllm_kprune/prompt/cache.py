"""Remember what segments were pruned to: the least recently used go first, bounded in bytes."""

import hashlib
from collections import OrderedDict
from dataclasses import dataclass
from threading import Lock

__all__ = ["CachedSegment", "SegmentCache"]

# A key of 32 bytes, a few small objects and the links between them.
_OVERHEAD = 512


@dataclass(frozen=True)
class CachedSegment:
    """What is left of a segment, and its tokens before and after."""

    text: str
    tokens_before: int
    tokens_after: int


class SegmentCache:
    """Pruned segments by their text and all that decides what is kept of it; thread-safe.

    Sizes are those of the texts in UTF-8 and a constant for each entry: close to, not exactly, what
    the process holds.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.bytes = 0
        self.hits = 0
        self.misses = 0
        self._entries: OrderedDict[bytes, tuple[CachedSegment, int]] = OrderedDict()
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, text: str, how: str) -> CachedSegment | None:
        """What `text` was pruned to under `how`, if it is still known."""
        with self._lock:
            entry = self._entries.get(key := _key(text, how))
            if entry is None:
                self.misses += 1
                return None
            self.hits += 1
            self._entries.move_to_end(key)
            return entry[0]

    def put(self, text: str, how: str, segment: CachedSegment) -> None:
        """Remember it; a segment larger than the whole cache is not kept."""
        size = len(segment.text.encode("utf-8", "surrogatepass")) + _OVERHEAD
        key = _key(text, how)
        with self._lock:
            if known := self._entries.pop(key, None):
                self.bytes -= known[1]
            if size > self.max_bytes:
                return
            self._entries[key] = (segment, size)
            self.bytes += size
            while self.bytes > self.max_bytes:
                self.bytes -= self._entries.popitem(last=False)[1][1]


def _key(text: str, how: str) -> bytes:
    """Texts come from strangers: the key must not collide, so the hash is a cryptographic one."""
    digest = hashlib.blake2b(digest_size=32)
    for part in (how, text):
        data = part.encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.digest()
