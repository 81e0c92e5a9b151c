"""Damaged variants of a file, from a seed: what a hostile or careless hand would change."""

import copy
import json
import random
from collections.abc import Iterator
from typing import Any

__all__ = ["malformed_bytes", "malformed_json", "outcome"]

# What a value is replaced with. `RAW` is what `json.dumps` cannot write.
_VALUES: tuple[Any, ...] = (
    *(None, True, False, -1, 0, 1 << 24, (1 << 31) - 1, 1 << 31, 1 << 63, 10**39, 1.5, -0.0),
    *("", "x", "\ud800", "../x", "/etc/passwd", "a\x00b", "[/bold]", "x" * 20_000, "\n\n"),
    *([], {}, [[]], [None], {"": 1}, {"abc": {}}, {"a": [1, "2"]}, [-1] * 500, [{}] * 500),
)
_RAW = (b"NaN", b"-Infinity", b"1e999", b"1" * 5000, b"[" * 450 + b"]" * 450, b'"\\ud800"', b"01")
_MARK = "\ue000raw"


def malformed_json(value: Any, count: int, seed: int = 0) -> Iterator[bytes]:
    """`count` damaged copies of a JSON value: a part is replaced, removed, repeated or renamed."""
    draw = random.Random(seed)
    for _ in range(count):
        changed, raw = copy.deepcopy(value), draw.choice(_RAW)
        for _ in range(draw.choice((1, 1, 1, 2))):
            changed = _change(changed, draw)
        data = json.dumps(changed).encode()
        yield data.replace(json.dumps(_MARK).encode(), raw)


def _change(value: Any, draw: random.Random) -> Any:
    places = list(_places(value))
    owner, key = draw.choice(places)
    if owner is None:
        return draw.choice(_VALUES)
    how = draw.choice(("value", "value", "value", "raw", "remove", "double", "rename", "wrap"))
    if how == "remove":
        del owner[key]
    elif how == "double" and isinstance(owner, list):
        owner.insert(key, owner[key])
    elif how == "rename" and isinstance(owner, dict):
        owner[draw.choice(("unknown", "", "\ud800", "x" * 300))] = owner.pop(key)
    elif how == "wrap":
        owner[key] = [owner[key]]
    else:
        owner[key] = _MARK if how == "raw" else copy.deepcopy(draw.choice(_VALUES))
    return value


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every (container, key), long lists and mappings by a few of their parts."""
    yield None, None
    waiting = [value] if isinstance(value, dict | list) else []
    while waiting:
        one = waiting.pop()
        keys = list(one) if isinstance(one, dict) else list(range(len(one)))
        for key in keys if len(keys) < 20 else (*keys[:3], keys[len(keys) // 2], keys[-1]):
            yield one, key
            if isinstance(one[key], dict | list):
                waiting.append(one[key])


def malformed_bytes(data: bytes, count: int, seed: int = 0) -> Iterator[bytes]:
    """`count` damaged copies of bytes: cut, flipped, repeated, or with others in between."""
    draw = random.Random(seed)
    for _ in range(count):
        at, changed = draw.randrange(len(data)), bytearray(data)
        how = draw.choice(("cut", "flip", "insert", "repeat", "mark"))
        if how == "cut":
            del changed[at:]
        elif how == "flip":
            changed[at] ^= 1 << draw.randrange(8)
        elif how == "insert":
            changed[at:at] = draw.choice(
                (b"\x00", b"\xff\xfe", b'"', b"[" * 2000, b"{", b"&a", b"!!set")
            )
        elif how == "repeat":
            changed += data[at:]
        else:
            changed[:0] = draw.choice((b"\xef\xbb\xbf", b"\xff\xfe", b"\x00" * 8))
        yield bytes(changed)


def outcome(error: Exception) -> str:
    """Checks that a refusal is one short line, and gives it."""
    message = str(error)
    assert message and len(message) < 1500, message[:2000]
    assert len(message.splitlines()) == 1, message
    message.encode(errors="backslashreplace")
    return message
