"""Where kprune keeps what it can make again: reference models, and overlays for serving."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

from vllm_kprune.errors import KPruneError

__all__ = ["cache_dir", "cache_folder"]


def cache_dir() -> Path:
    """The cache folder: `$KPRUNE_CACHE`, else `kprune` in the user's cache folder.

    The user's cache folder is `$XDG_CACHE_HOME`, else `~/.cache`, or `~/Library/Caches` on macOS.
    Nothing is created here.
    """
    if named := os.environ.get("KPRUNE_CACHE"):
        return Path(named).expanduser().absolute()
    if shared := os.environ.get("XDG_CACHE_HOME"):
        return Path(shared).expanduser() / "kprune"
    base = Path("~/Library/Caches" if sys.platform == "darwin" else "~/.cache")
    return base.expanduser() / "kprune"


def cache_folder(*parts: str, root: Path | None = None) -> Path:
    """A folder of the cache, made if it is missing; `root` replaces the cache.

    Raises `KPruneError` if nothing can be written there: a lock in it would be waited for for ever.
    """
    folder = (root or cache_dir()).joinpath(*parts)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise KPruneError(
            f"kprune's cache {folder} cannot be written: {error.strerror or error}; set "
            "KPRUNE_CACHE to a folder that can"
        ) from None
    return folder
