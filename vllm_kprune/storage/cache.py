"""Where kprune keeps what it can make again: reference models, overlays built while serving."""

from __future__ import annotations

import os
import sys
from pathlib import Path

__all__ = ["cache_dir"]


def cache_dir() -> Path:
    """The cache folder: `$KPRUNE_CACHE`, else `kprune` in the user's cache folder.

    It is not created here. The user's cache folder is `$XDG_CACHE_HOME` or `~/.cache`, on macOS
    `~/Library/Caches`.
    """
    if named := os.environ.get("KPRUNE_CACHE"):
        return Path(named).expanduser().absolute()
    if shared := os.environ.get("XDG_CACHE_HOME"):
        return Path(shared).expanduser() / "kprune"
    base = Path("~/Library/Caches" if sys.platform == "darwin" else "~/.cache")
    return base.expanduser() / "kprune"
