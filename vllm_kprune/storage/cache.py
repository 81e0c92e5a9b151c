"""Where kprune keeps what it can make again: reference models, and overlays for serving."""

from __future__ import annotations

import os
import sys
from pathlib import Path

__all__ = ["cache_dir"]


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
