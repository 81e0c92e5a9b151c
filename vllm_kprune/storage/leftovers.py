"""What killed runs leave behind, and how to be rid of it: by the next run, or by `kprune clean`.

    .NAME.kprune-xxxxxxxx       a folder that was being written
    kprunexxxxxxxxxxxxxxxx.tmp  a file that was being written

A folder is written under the lock of its target (`.NAME.lock`), so a leftover is one whose lock is
free. Files have no lock: they are leftovers once nobody has written to them for an hour. The folder
`.NAME.unfinished` of a run that can be resumed is none of them.
"""

import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

__all__ = [
    "NEW",
    "REPLACED",
    "Leftover",
    "find_leftovers",
    "remove_leftover",
    "scratch_prefix",
    "sweep_others",
    "sweep_target",
]

# In a scratch folder: what is being written, and what it replaces.
REPLACED = "replaced"
NEW = "new"
_SCRATCH = re.compile(r"\.(?P<name>.+)\.kprune-[a-z0-9_]{8}", re.DOTALL)
_FILE = re.compile(r"kprune[0-9a-f]{16}\.tmp")
_OLD_SECONDS = 3600.0


@dataclass(frozen=True)
class Leftover:
    """A folder or a file that a killed run has left; `target` is what it was to become, or None."""

    path: Path
    target: Path | None
    num_bytes: int


def scratch_prefix(target: Path) -> str:
    """What the names of the scratch folders of a target begin with; they are beside it."""
    return f".{target.name}.kprune-"


def sweep_target(target: Path) -> None:
    """Remove the leftovers of a target whose lock the caller holds."""
    for path in _scratch_folders(target.parent):
        if _target_of(path) == target:
            _remove_scratch(path, target)


def sweep_others(target: Path) -> None:
    """Remove the leftovers beside a target that were to become something else."""
    for path in _scratch_folders(target.parent):
        other = _target_of(path)
        if other is not None and other != target:
            with _locked(other) as is_free:
                if is_free:
                    _remove_scratch(path, other)


def find_leftovers(folder: Path) -> Iterator[Leftover]:
    """The leftovers in a folder and everything below it."""
    for path in _scratch_folders(folder, below=True):
        target = _target_of(path)
        if target is not None:
            with _locked(target) as is_free:
                if is_free:
                    yield Leftover(path, target, _size(path))
    for path in folder.rglob("kprune*.tmp"):
        try:
            is_old = time.time() - path.stat().st_mtime > _OLD_SECONDS
            if _FILE.fullmatch(path.name) and path.is_file() and is_old:
                yield Leftover(path, None, path.stat().st_size)
        except FileNotFoundError:
            continue  # it was being written, and has its name now


def remove_leftover(leftover: Leftover) -> bool:
    """Remove what `find_leftovers` found; False if a run has begun with it in the meantime."""
    if leftover.target is None:
        leftover.path.unlink(missing_ok=True)
        return True
    with _locked(leftover.target) as is_free:
        if is_free:
            _remove_scratch(leftover.path, leftover.target)
        return is_free


def _remove_scratch(path: Path, target: Path) -> None:
    # Killed where two names cannot be exchanged, a run may have left no target but the old one.
    if not target.exists() and (path / REPLACED).is_dir():
        (path / REPLACED).rename(target)
    shutil.rmtree(path, ignore_errors=True)


def _scratch_folders(folder: Path, *, below: bool = False) -> list[Path]:
    pattern = ".*.kprune-*"
    found = folder.rglob(pattern) if below else folder.glob(pattern)
    return sorted(path for path in found if _is_scratch(path))


def _is_scratch(path: Path) -> bool:
    """Has a folder only what kprune puts into its scratch folders?"""
    try:
        return not path.is_symlink() and {one.name for one in path.iterdir()} <= {NEW, REPLACED}
    except OSError:  # no folder, or removed by now
        return False


def _target_of(path: Path) -> Path | None:
    found = _SCRATCH.fullmatch(path.name)
    return path.with_name(found["name"]) if found else None


@contextmanager
def _locked(target: Path) -> Iterator[bool]:
    """Hold the lock of a target, if nobody else does."""
    lock = FileLock(target.with_name(f".{target.name}.lock"), timeout=0)
    try:
        lock.acquire()
    except Timeout:
        yield False
        return
    except OSError:  # a folder that cannot be written to
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


def _size(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file())
