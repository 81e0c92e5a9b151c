"""What takes long to build, once for all test processes of a checkout, and for later runs.

`make test` starts several processes, each of which would build the same overlay of Gemma-3. A
result is kept in kprune's cache, under a name that is made from the sources of kprune and from
what the result is built from: an edited source builds it again.
"""

import hashlib
import shutil
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path

from filelock import FileLock

import vllm_kprune
from vllm_kprune.storage.cache import cache_dir
from vllm_kprune.storage.folders import new_folder

__all__ = ["shared_build"]

_NEWEST = 2  # of one name: those of this checkout and of another one


def shared_build(
    name: str, inputs: Iterable[Path], build: Callable[[Path], object], target: Path
) -> Path:
    """Copy into `target`, which must not exist, what `build(folder)` made of `inputs`."""
    root = cache_dir() / "tests"
    entry = root / f"{name}-{_digest(tuple(inputs))}"
    root.mkdir(parents=True, exist_ok=True)
    with FileLock(root / f".{name}.build.lock"):
        if not entry.is_dir():
            with new_folder(entry) as folder:
                build(folder)
            _forget_old(root, name)
    shutil.copytree(entry, target)  # a test that edits it must not change it for others
    return target


def _digest(inputs: tuple[Path, ...]) -> str:
    stats = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in inputs]
    return hashlib.sha256(f"{_sources()} {stats}".encode()).hexdigest()[:16]


@cache
def _sources() -> str:
    """The digest of kprune's own files, and of the scripts that build."""
    digest = hashlib.sha256()
    package = Path(vllm_kprune.__file__).parent
    for path in sorted([*package.rglob("*"), *Path(__file__).parent.glob("*.py")]):
        if path.is_file() and path.suffix != ".pyc":
            digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


def _forget_old(root: Path, name: str) -> None:
    entries = sorted(root.glob(f"{name}-*"), key=lambda path: path.stat().st_mtime)
    for entry in entries[:-_NEWEST]:
        shutil.rmtree(entry)
