"""Remember what segments were pruned to: those used most recently, within a limit of bytes."""

import hashlib
from collections import OrderedDict
from dataclasses import dataclass
from threading import Lock

__all__ = ["CachedSegment", "SegmentCache"]

# Bytes of an entry besides its text: a key of 32, a few small objects and links between them.
_OVERHEAD = 512


@dataclass(frozen=True)
class CachedSegment:
    """What is left of a segment, its number of tokens before and after, and its layout.

    `layout` is what the segment is if it was left whole for that, or None.
    """

    text: str
    tokens_before: int
    tokens_after: int
    layout: str | None = None


class SegmentCache:
    """Pruned segments by their text and by everything that decides what is kept. Thread-safe.

    An entry's size is its text in UTF-8 and a constant, which is close to the memory it takes.
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
        """What `text` was pruned to under `how`; None if it is not in the cache."""
        with self._lock:
            entry = self._entries.get(key := _key(text, how))
            if entry is None:
                self.misses += 1
                return None
            self.hits += 1
            self._entries.move_to_end(key)
            return entry[0]

    def has(self, text: str, how: str) -> bool:
        """Is this segment remembered? Unlike `get`, it counts nothing."""
        with self._lock:
            return _key(text, how) in self._entries

    def put(self, text: str, how: str, segment: CachedSegment) -> None:
        """Remember a pruned segment, unless it is larger than the whole cache."""
        size = len(segment.text.encode("utf-8", "surrogatepass")) + _OVERHEAD
        key = _key(text, how)
        # Two threads may prune the same text at once: then the key is there already, and counted.
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
    """A cryptographic hash, because strangers send the texts and must not make keys collide."""
    digest = hashlib.blake2b(digest_size=32)
    for part in (how, text):
        data = part.encode("utf-8", "surrogatepass")
        # With its length before it, ("ab", "c") and ("a", "bc") are different keys.
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.digest()
