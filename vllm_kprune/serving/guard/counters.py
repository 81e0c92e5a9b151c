"""Counters that engine processes write and every API server reads: one small file per process.

vLLM does not sample in the process that answers `/metrics`, and several API servers may answer.
Each writer has its own file, so that nothing is locked or counted twice; a reader adds them up. The
folder is made before the engine starts and named in the environment, which all processes of a
server share. (In `additional_config`, each new name would make vLLM compile the model again.) An
engine on another machine does not find the folder, and its counts are not shown.
"""

import atexit
import os
import shutil
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from vllm_kprune.serving.options import COUNTER_FOLDER

__all__ = [
    "COUNTERS",
    "REASONING",
    "CounterFile",
    "counter_folder",
    "ensure_folder",
    "explain_dead_end",
    "read_totals",
]

COUNTERS = ("requests", "changed_steps", "dead_ends")
OTHER = "other"
# How labels of what is counted in a model's reasoning begin; the rest is the policy's label.
REASONING = "reasoning:"
_SETS = 32
_JUST_BEFORE_SECONDS = 5.0
# A file is _SETS + 1 of these, 96 bytes each, written by one process through `mmap` and read by
# another.
_RECORD = np.dtype(
    [("label", "S64"), *((name, "<u8") for name in COUNTERS), ("dead_end_at", "<f8")]
)


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


class CounterFile:
    """This process's counts, by label: the first 32 by name, all others as "other" (slot 0).

    Without a folder it counts in memory only.
    """

    def __init__(self, folder: Path | None) -> None:
        self._slots: dict[str, int] = {}
        if folder is None:
            self._records = np.zeros(_SETS + 1, _RECORD)
        else:
            # The time as well: two guards of one process, and a process id that is used again, get
            # files of their own.
            path = folder / f"{os.getpid()}-{time.monotonic_ns()}.counters"
            self._records = np.memmap(path, _RECORD, mode="w+", shape=(_SETS + 1,))
        self._records["label"][0] = OTHER.encode()

    @property
    def slots(self) -> int:
        """How many slots there are."""
        return len(self._records)

    def slot(self, label: str) -> int:
        """The slot of a label, which it gets at its first use."""
        if label not in self._slots and len(self._slots) < _SETS:
            # Slot 0 is "other". Requests name their languages, so the number of labels must have a
            # bound: each is a time series in Prometheus.
            self._slots[label] = len(self._slots) + 1
            # May cut a character in two, which is why readers decode with `errors="replace"`.
            self._records["label"][self._slots[label]] = label.encode()[:64]
        return self._slots.get(label, 0)

    def add(self, counter: str, slot: int, number: int = 1) -> None:
        """Count `number` more."""
        self._records[counter][slot] += np.uint64(number)
        if counter == "dead_ends":
            self._records["dead_end_at"][slot] = time.time()

    def raise_to(self, counter: str, totals: Any) -> None:
        """Set a counter to totals counted elsewhere, one for each slot; they only grow."""
        # Never downwards: Prometheus takes a counter that falls for a restart.
        grown = totals > self._records[counter]
        self._records[counter][grown] = totals[grown]
        if counter == "dead_ends":
            self._records["dead_end_at"][grown] = time.time()


def read_totals(folder: Path | None) -> dict[str, dict[str, int]]:
    """Label -> counter -> number, over all processes; labels without counts are left out."""
    totals: dict[str, dict[str, int]] = defaultdict(lambda: dict.fromkeys(COUNTERS, 0))
    for records in _all_records(folder):
        for record in records:
            if any(record[name] for name in COUNTERS):
                label = record["label"].decode("utf-8", errors="replace")
                for name in COUNTERS:
                    totals[label][name] += int(record[name])
    return dict(totals)


def explain_dead_end(folder: Path | None, now: float | None = None) -> str | None:
    """Why a request ended with an error, if a dead end was counted just before; otherwise None.

    vLLM's error has no reason, and the process that knows the reason does not know the request.
    Both dead ends and other errors are so rare that the time is enough to match them.
    """
    # Wall-clock time, because it is compared between processes. 0.0 where there was no dead end.
    moments = [float(records["dead_end_at"].max()) for records in _all_records(folder)]
    latest = max(moments, default=0.0)
    if (time.time() if now is None else now) - latest > _JUST_BEFORE_SECONDS:
        return None
    return (
        "no token was left that both the request's grammar (structured output, tool call) and the "
        "language guard allow; ask for other languages (vllm_xargs kprune_languages), allow the "
        "characters (kprune_allow), or change the schema"
    )


def _all_records(folder: Path | None) -> list[Any]:
    files = sorted(folder.glob("*.counters")) if folder else []
    # A file that was created this moment may still be empty, and `max()` of nothing is an error.
    return [records for file in files if len(records := np.fromfile(file, _RECORD))]
