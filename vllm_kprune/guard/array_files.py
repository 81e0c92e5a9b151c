"""Files of NumPy arrays in a cache: complete or absent, without pickle, checked before use.

A file that is damaged is logged and made again, and a folder that cannot be written is only logged:
a cache must never be the reason why a server does not start.
"""

import logging
import zipfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from vllm_kprune.storage.folders import new_file

__all__ = ["Arrays", "read_arrays", "write_arrays"]

_MOST_BYTES = 256 << 20
_log = logging.getLogger(__name__)

Arrays: TypeAlias = dict[str, npt.NDArray[Any]]
T = TypeVar("T")


def read_arrays(path: Path, names: Iterable[str], make: Callable[[Arrays], T]) -> T | None:
    """What `make` makes of the named arrays of a file; None if the file is missing or damaged.

    `make` raises ValueError for arrays that do not belong together.
    """
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise ValueError("the file is too large")
        # NumPy leaves a file open that it opened and found damaged.
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
            # Compressed, a file can hold far more than its size.
            if sum(member.file_size for member in arrays.zip.infolist()) > _MOST_BYTES:
                raise ValueError("its arrays are too large")
            return make({name: arrays[name] for name in names})
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, EOFError, MemoryError, zipfile.BadZipFile) as error:
        _log.warning("kprune guard: %s is damaged and is made again (%s)", path, error)
        return None


def write_arrays(path: Path, arrays: Mapping[str, Any], most_files: int) -> None:
    """Write a file, and keep only the newest `most_files` of its folder.

    Only files whose names begin alike, up to the first "-", are counted and removed.
    """
    try:
        with new_file(path) as stream:
            np.savez(stream, allow_pickle=False, **arrays)
        _forget_oldest(path, most_files)
    except OSError as error:
        _log.warning("kprune guard: no cache for the next start: cannot write %s (%s)", path, error)


def _forget_oldest(written: Path, most_files: int) -> None:
    kind = written.name.split("-")[0]
    others = [path for path in written.parent.glob(f"{kind}-*.npz") if path != written]
    newest_first = sorted(others, key=_last_written, reverse=True)
    # - 1 for the file just written.
    for path in newest_first[most_files - 1 :]:
        path.unlink(missing_ok=True)


def _last_written(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:  # another process has removed it
        return 0
