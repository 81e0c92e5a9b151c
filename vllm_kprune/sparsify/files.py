"""The files of a sparsified checkpoint: those of the original, copied."""

import os
from pathlib import Path

from vllm_kprune.checkpoint.shards import copy_file
from vllm_kprune.progress import Progress
from vllm_kprune.sparsify.body import ModelBody
from vllm_kprune.storage.links import refuse_foreign_link

__all__ = ["copy_other_files", "copy_shards", "missing_bytes", "sync_file"]

# Weights in other formats would not be sparsified, and code is never copied.
_LEFT_OUT = {".bin", ".ckpt", ".gguf", ".h5", ".msgpack", ".onnx", ".pt", ".pth", ".py",
             ".safetensors"}  # fmt: skip
_LARGEST_OTHER_FILE = 64 << 20
_BLOCK = 32 << 20


def missing_bytes(body: ModelBody, folder: Path) -> int:
    """Bytes of the weight files that are not in `folder` yet."""
    names = [name for name in body.base.shards if not (folder / name).is_file()]
    return sum((body.base.folder / name).stat().st_size for name in names)


def copy_shards(body: ModelBody, folder: Path, progress: Progress) -> None:
    """Copy the weight files that are not in `folder` yet."""
    total = max(1, missing_bytes(body, folder))
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        if done % _BLOCK < count:
            progress("copy weights", min(done / total, 1.0))

    progress("copy weights", 0.0)
    for name in body.base.shards:
        if not (folder / name).is_file():
            # Killed while it copies, a run leaves a file of another name.
            scratch = folder / f"{name}.tmp"
            copy_file(body.base.folder / name, scratch, advance)
            sync_file(scratch)
            scratch.rename(folder / name)
    progress("copy weights", 1.0)


def sync_file(path: Path) -> None:
    """Wait until a file's content is on the disk."""
    with path.open("rb") as stream:
        os.fsync(stream.fileno())


def copy_other_files(body: ModelBody, folder: Path) -> None:
    """Copy configuration, tokenizer, licences and what else is small and no code."""
    for path in body.base.folder.iterdir():
        if path.name.startswith(".") or path.suffix in _LEFT_OUT or not path.is_file():
            continue
        refuse_foreign_link(path)
        if path.stat().st_size <= _LARGEST_OTHER_FILE:
            copy_file(path, folder / path.name)
