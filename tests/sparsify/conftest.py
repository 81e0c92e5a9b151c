"""Small models of every family, texts to calibrate with, and runs of `sparsify_model`."""

import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from support.sparsify_cases import Sparsified, small_options
from support.tiny_architectures import ARCHITECTURES
from support.tiny_tokenizers import SENTENCES

from vllm_kprune.sparsify.run import sparsify_model


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Matrices are so small that threads only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Digests of files are remembered in the test's own folder."""
    monkeypatch.setenv("KPRUNE_CACHE", str(tmp_path / "cache"))


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


@pytest.fixture
def sparsified(saved: Callable[[str], Path], text: Path, tmp_path: Path) -> Sparsified:
    """A function that sparsifies a tiny architecture; gives the new folder and its record."""

    def run(name: str, method: str, **options: Any) -> tuple[Path, dict[str, Any]]:
        output = tmp_path / f"sparse-{len(list(tmp_path.iterdir()))}"
        return output, sparsify_model(saved(name), output, small_options(method, text, **options))

    return run
