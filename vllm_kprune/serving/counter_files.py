"""Files that processes of one server count in, for any of them to add up: one file per process.

Each writer has its own file, so that nothing is locked or counted twice; a reader adds them up. The
folder is made before the engine starts and named in the environment, which all processes of a
server share. (In `additional_config`, each new name would make vLLM compile the model again.) A
process on another machine does not find the folder, and its counts are not shown.
"""

import atexit
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from vllm_kprune.serving.environment import COUNTER_FOLDER
from vllm_kprune.storage.folders import new_file

__all__ = ["all_records", "counter_folder", "ensure_folder", "new_records"]


def counter_folder() -> Path | None:
    """The folder of this server's counter files; None if there is none on this machine."""
    name = os.environ.get(COUNTER_FOLDER)
    return Path(name) if name and Path(name).is_dir() else None


def ensure_folder() -> Path:
    """Make the folder unless a process of this server has; it is deleted when its maker ends."""
    if folder := counter_folder():
        return folder
    made = tempfile.mkdtemp(prefix="kprune-counters-")
    os.environ[COUNTER_FOLDER] = made
    atexit.register(_remove, made, os.getpid())
    return Path(made)


def _remove(folder: str, maker: int) -> None:
    # A forked child inherits the exit handler, and must not take the folder from its parent.
    if os.getpid() == maker:
        shutil.rmtree(folder, ignore_errors=True)


def new_records(folder: Path | None, kind: str, record: np.dtype[Any], number: int) -> Any:
    """Zeroed records of this process; `kind` ends the file's name. In memory without a folder.

    Raises `OSError` if the folder cannot be written.
    """
    if folder is None:
        return np.zeros(number, record)
    # The time as well: two guards of one process, and a process id that is used again, get files of
    # their own.
    path = folder / f"{os.getpid()}-{time.monotonic_ns()}.{kind}"
    # Written in full: a full disk is an `OSError` now. In a file with holes it would be SIGBUS at
    # some later count.
    with new_file(path) as stream:
        stream.write(bytes(number * record.itemsize))
    return np.memmap(path, record, mode="r+")


def all_records(folder: Path | None, kind: str, record: np.dtype[Any]) -> list[Any]:
    """The records of every process of the server that counts this kind."""
    return [np.fromfile(file, record) for file in folder.glob(f"*.{kind}")] if folder else []
