"""Files are remembered by size, time and content."""

import hashlib
import os
from pathlib import Path

import pytest

from vllm_kprune.storage.digest import canonical_json, digest_file, sha256_file


@pytest.mark.parametrize("size", [0, 1, (1 << 22) - 1, 1 << 22, (1 << 22) + 1])
def test_a_file_is_read_whole_in_blocks(tmp_path: Path, size: int) -> None:
    path = tmp_path / "a"
    path.write_bytes(os.urandom(size))
    read: list[int] = []
    assert sha256_file(path, read.append) == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (sum(read), digest_file(path).size) == (size, size)


def test_content_is_read_again_only_when_the_time_differs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"one")
    digest = digest_file(path)
    os.utime(path, ns=(0, digest.mtime_ns + 1))
    assert digest.matches(path)
    path.write_bytes(b"two")
    os.utime(path, ns=(0, digest.mtime_ns + 1))
    assert not digest.matches(path)
    path.write_bytes(b"longer")
    assert not digest.matches(path)
    path.write_bytes(b"one")
    os.utime(path, ns=(0, digest.mtime_ns))
    monkeypatch.setattr("vllm_kprune.storage.digest.sha256_file", lambda path: "not called")
    assert digest.matches(path)


def test_the_same_value_is_always_written_as_the_same_bytes() -> None:
    assert canonical_json({"b": 1, "a": ["가"]}) == canonical_json({"a": ["가"], "b": 1})
    assert canonical_json({"b": 1, "a": ["가"]}) == '{"a":["가"],"b":1}'
