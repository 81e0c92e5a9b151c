"""Write folders and files that appear complete or not at all.

A folder is made next to its final place and renamed at the end, so a full disk, a failed check or a
killed process leaves nothing that looks finished, and an old folder is there until the new one is.
The next run removes what killed runs left, or with `resumable_folder` goes on with it. Both look
for leftovers of other targets in the same folder, too; `kprune clean` looks where it is told.
"""

import errno
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from filelock import FileLock, Timeout

from vllm_kprune.errors import KPruneError
from vllm_kprune.storage.exchange import put_in_place
from vllm_kprune.storage.leftovers import NEW, REPLACED, scratch_prefix, sweep_others, sweep_target

__all__ = ["new_file", "new_folder", "resumable_folder"]

# In a folder that is finished but not in its place yet.
_NEW = ".kprune-new"


@contextmanager
def new_folder(target: Path, replace_if: str | Sequence[str] | None = None) -> Iterator[Path]:
    """Yield an empty folder that becomes `target` when the block ends without an error.

    An existing `target` is replaced only if it is empty, or if it has a file named `replace_if` (or
    one of several names). If two processes make the same target, the later one waits, and then
    finds the target there. Raises `KPruneError` if the target may not be replaced or written.
    """
    target = target.absolute()
    marks = [replace_if] if isinstance(replace_if, str) else list(replace_if or ())
    try:
        _refuse_foreign(target, marks)
        target.parent.mkdir(parents=True, exist_ok=True)
        # Fails at once if nothing can be written here; `FileLock` would try for ever.
        tempfile.TemporaryFile(dir=target.parent).close()
        with FileLock(target.parent / f".{target.name}.lock"):
            # Who holds the lock is alone with this target, so every scratch folder is a leftover.
            sweep_target(target)
            sweep_others(target)
            prefix = scratch_prefix(target)
            with tempfile.TemporaryDirectory(prefix=prefix, dir=target.parent) as scratch:
                # Not `scratch` itself: `tempfile` makes that private (0700), and the result would
                # stay so.
                folder = Path(scratch) / NEW
                folder.mkdir()
                yield folder
                _refuse_foreign(target, marks)  # again: something may have appeared meanwhile
                # The old one is in the scratch folder afterwards, which is removed.
                put_in_place(folder, target, Path(scratch) / REPLACED)
    except OSError as error:
        raise KPruneError(_explain(error, target)) from error


@contextmanager
def resumable_folder(target: Path, replace_if: str | Sequence[str] | None = None) -> Iterator[Path]:
    """Like `new_folder`, but what a run leaves behind is kept: the next run gets the same folder.

    It is `.NAME.unfinished` beside the target. Whether its content fits is the caller's business. A
    second process that wants the same target at the same time is refused.
    """
    target = target.absolute()
    marks = [replace_if] if isinstance(replace_if, str) else list(replace_if or ())
    folder, finished, aside = (
        target.with_name(f".{target.name}.{state}")
        for state in ("unfinished", "finished", REPLACED)
    )
    try:
        _refuse_foreign(target, marks)
        target.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=target.parent).close()
        with FileLock(target.parent / f".{target.name}.lock", timeout=1):
            _recover(target, finished, aside)
            sweep_others(target)
            folder.mkdir(exist_ok=True)
            (folder / _NEW).unlink(missing_ok=True)  # killed just before it was finished
            try:
                yield folder
            except BaseException:
                with suppress(OSError):
                    folder.rmdir()  # only if nothing was written yet
                raise
            _refuse_foreign(target, marks)
            # Under a name of its own: what is replaced must never be taken for unfinished.
            (folder / _NEW).touch()
            folder.rename(finished)
            _recover(target, finished, aside)
    except Timeout:
        raise KPruneError(f"another run is writing {target}; wait for it") from None
    except OSError as error:
        raise KPruneError(_explain(error, target)) from error


@contextmanager
def new_file(target: Path) -> Iterator[IO[bytes]]:
    """Yield an empty file that becomes `target`, or replaces it, when the block ends.

    Its mode follows the umask, like that of any new file (`tempfile` would make it private).
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    # Beside the target: a rename is atomic only within one file system.
    path = target.with_name(f"kprune{secrets.token_hex(8)}.tmp")
    with path.open("xb") as scratch:
        try:
            yield scratch
        # Ctrl-C and SystemExit too: nothing half-written may stay.
        except BaseException:
            path.unlink()
            raise
    path.replace(target)


def _refuse_foreign(target: Path, marks: Sequence[str]) -> None:
    if target.exists() and not target.is_dir():
        raise KPruneError(f"{target} is a file; name a folder for the output")
    if not target.is_dir() or not any(target.iterdir()):
        return
    if not marks:
        raise KPruneError(f"{target} is not empty; name another folder, or use --force")
    if not any((target / mark).is_file() for mark in marks):
        names = " or ".join(marks)
        raise KPruneError(
            f"{target} has files that kprune did not make (there is no {names}), so --force "
            "does not replace it; name another folder"
        )


def _recover(target: Path, finished: Path, aside: Path) -> None:
    """Put a finished folder in its place, wherever a killed run had stopped doing so."""
    # The mark tells the new folder from the old one, since their names may be exchanged already.
    if (finished / _NEW).exists():
        put_in_place(finished, target, aside)
    if not target.exists() and aside.exists():
        aside.rename(target)
    (target / _NEW).unlink(missing_ok=True)
    for old in (finished, aside):
        shutil.rmtree(old, ignore_errors=True)


def _explain(error: OSError, target: Path) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"the disk of {target.parent} is full, so nothing was kept; make room and try again"
    reason = error.strerror or str(error)
    culprit = Path(os.fsdecode(error.filename)) if isinstance(error.filename, str | bytes) else None
    # The caller's block reads files elsewhere, a base model for instance, and may fail there.
    if culprit and not culprit.absolute().is_relative_to(target.parent):
        return f"cannot read or write {culprit}: {reason}; nothing was kept of {target}"
    return f"cannot write {target}: {reason}; nothing was kept"
