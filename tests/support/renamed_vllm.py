"""The installed vLLM with classes renamed everywhere: a later release, as far as kprune can tell.

The copy is a folder of links, in which only the files that name one of the classes are real.
"""

import importlib.util
import os
import re
from collections.abc import Sequence
from pathlib import Path

__all__ = ["rename_classes"]


def rename_classes(words: Sequence[str], folder: Path) -> Path:
    """Put a `vllm` into `folder` in which each class is called `Later…`; for `PYTHONPATH`."""
    spec = importlib.util.find_spec("vllm")
    assert spec and spec.submodule_search_locations
    (source,) = map(Path, spec.submodule_search_locations)
    pattern = re.compile(rf"\b({'|'.join(words)})\b")
    for parent, folders, names in os.walk(source):
        folders[:] = [name for name in folders if name != "__pycache__"]
        target = folder / "vllm" / Path(parent).relative_to(source)
        target.mkdir(parents=True)
        # Python takes what it compiled for files that are the same; it must not write here.
        if (compiled := Path(parent, "__pycache__")).is_dir():
            (target / "__pycache__").symlink_to(compiled)
        for name in names:
            _copy(Path(parent, name), target / name, pattern)
    return folder


def _copy(source: Path, target: Path, pattern: re.Pattern[str]) -> None:
    if source.suffix == ".py":
        text = source.read_text(encoding="utf-8")
        if pattern.search(text):
            target.write_text(pattern.sub(r"Later\1", text), encoding="utf-8")
            return
    target.symlink_to(source)
