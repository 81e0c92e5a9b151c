"""Put a finished folder in the place of another, so that at every moment one of them is there."""

import ctypes
import errno
import os
from pathlib import Path

__all__ = ["put_in_place"]

_AT_FDCWD = -100  # paths are relative to the working folder
_RENAME_EXCHANGE = 2
# The kernel or the file system has no such call (NFS, older FUSE), or this is not Linux.
_UNABLE = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP)


def put_in_place(folder: Path, target: Path, aside: Path) -> None:
    """Rename `folder` to `target`. What was there is afterwards at `folder` or at `aside`.

    Where two names cannot be exchanged, there is a moment without `target`, and then the old folder
    is at `aside`: whoever finds it there, and no target, can move it back.
    """
    if not target.exists():
        folder.rename(target)
    elif not _exchange(folder, target):
        target.rename(aside)
        folder.rename(target)


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two names at once; False if that is not possible here."""
    call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if call is None:
        return False
    names = (os.fsencode(one), os.fsencode(other))
    if call(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in _UNABLE:
        return False
    raise OSError(number, os.strerror(number), str(other))
