"""Counts how often a model's folder is opened and its files are read."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vllm_kprune.checkpoint import base, manifest
from vllm_kprune.storage import digest


def count_reads(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """From now on: `tokenizer` and `header` are parsed; `folder/file` is read whole to hash it."""
    counted: Counter[str] = Counter()

    def count(module: Any, function: str, name_of: Callable[[Path], str]) -> None:
        original = getattr(module, function)

        def counting(path: Path, *rest: Any) -> Any:
            counted[name_of(path)] += 1
            return original(path, *rest)

        monkeypatch.setattr(module, function, counting)

    count(base, "read_tokenizer", lambda folder: "tokenizer")
    count(base, "read_shard", lambda path: "header")
    for module in (digest, manifest):  # the second has imported the name
        count(module, "sha256_file", lambda path: f"{path.parent.name}/{path.name}")
    return counted


def hashed_in(counted: Counter[str], folder: str) -> dict[str, int]:
    """File -> how often it was hashed, for the files of one folder."""
    return {
        name.removeprefix(f"{folder}/"): times
        for name, times in counted.items()
        if name.startswith(f"{folder}/")
    }
