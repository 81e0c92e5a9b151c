"""Fixtures of tests that change weights: small models of every family, text, one thread.

A conftest imports them by name.
"""

import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from support.tiny_architectures import ARCHITECTURES
from support.tiny_tokenizers import SENTENCES

__all__ = ["cached_in", "one_thread", "own_cache", "saved", "shared_cache", "text", "unsynced"]


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Matrices are so small that threads only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def shared_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cache of these tests, which knows the digests and places of their models."""
    return tmp_path_factory.mktemp("cache")


@contextmanager
def cached_in(folder: Path) -> Iterator[None]:
    """For fixtures that are made once, before `own_cache`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KPRUNE_CACHE", str(folder))
        yield


@pytest.fixture(autouse=True)
def own_cache(shared_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is read from the user's cache, or written there."""
    monkeypatch.setenv("KPRUNE_CACHE", str(shared_cache))


@pytest.fixture(autouse=True)
def unsynced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests kill processes but never the machine, so that nothing needs to reach the disk."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """About 3,000 tokens: sentences in many languages, no two lines alike."""
    words = " ".join(SENTENCES).split()
    shuffled = random.Random(0)
    lines = [" ".join(shuffled.sample(words, 12)) for _ in range(120)]
    path = tmp_path_factory.mktemp("text") / "mixed.txt"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A function that gives the folder of a tiny architecture, saved once."""
    root = tmp_path_factory.mktemp("models")

    def save(name: str) -> Path:
        folder = root / name
        return folder if folder.is_dir() else ARCHITECTURES[name].save(folder)

    return save
