"""Small models of every family, saved once."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from support.tiny_architectures import ARCHITECTURES


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Matrices are so small that threads only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A function that gives the folder of a tiny architecture, saved once."""
    root = tmp_path_factory.mktemp("models")

    def save(name: str) -> Path:
        folder = root / name
        return folder if folder.is_dir() else ARCHITECTURES[name].save(folder)

    return save
