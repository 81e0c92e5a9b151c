"""Sums over the answers of a server: how often each token occurs, and in how many requests.

Every API server counts the answers that it gives when they end, from token ids that are on the host
anyway; nothing is copied from the device. Nothing of a single request is kept after it ended.

What is told changes only after a number of further requests (`released`): counts that could be read
after each request would tell its tokens by their differences.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
from filelock import FileLock

from vllm_kprune.serving.compat import logger
from vllm_kprune.serving.counter_files import all_records, counter_folder, new_records
from vllm_kprune.serving.environment import USAGE_ROWS
from vllm_kprune.storage.folders import new_file

__all__ = ["Totals", "UsageCounts", "process_counts", "released"]

# One for each token id, and one at the end whose `in_requests` are all requests: 4 MB for 262,144
# ids.
_RECORD = np.dtype([("occurrences", "<u8"), ("in_requests", "<u8")])
_KIND = "usage"
_RELEASED = "usage.released"


class UsageCounts:
    """This process's counts of `rows` token ids."""

    def __init__(self, folder: Path | None, rows: int) -> None:
        records = new_records(folder, _KIND, _RECORD, rows + 1)
        self._rows = rows
        # Plain views: each look into a `memmap` makes an object of that class, which is slow.
        self._occurrences, self._in_requests = (
            np.asarray(records[name]) for name in ("occurrences", "in_requests")
        )

    def add(self, ids: Sequence[int], earlier: set[int] | None = None) -> None:
        """Count an answer's token ids.

        `earlier` are those of other answers to the same request, and gets these, too. A request
        counts once for a token, however many of its answers have it.
        """
        found, times = np.unique(np.asarray(ids, np.int64), return_counts=True)
        inside = (found >= 0) & (found < self._rows)
        found, times = found[inside], times[inside]
        if not len(found):
            return
        # First, because a reader may come between: no token may be in more requests than there are.
        if not earlier:
            self._in_requests[self._rows] += np.uint64(1)
        self._occurrences[found] += times.astype(np.uint64)
        if earlier:
            found = np.array([i for i in found.tolist() if i not in earlier], np.int64)
        self._in_requests[found] += np.uint64(1)
        if earlier is not None:
            earlier.update(found.tolist())


@cache
def process_counts() -> UsageCounts | None:
    """What this process counts in; None if its file cannot be made."""
    try:
        return UsageCounts(counter_folder(), int(os.environ[USAGE_ROWS]))
    # In the middle of an answer: better no counts than no answers.
    except OSError as error:
        logger.warning("kprune: the tokens of answers are not counted: %s", error)
        return None


@dataclass(frozen=True, eq=False)
class Totals:
    """Sums over all processes: `occurrences` and `in_requests`, uint64 [rows], by token id."""

    occurrences: npt.NDArray[np.uint64]
    in_requests: npt.NDArray[np.uint64]
    requests: int


def released(folder: Path, rows: int, step: int) -> Totals:
    """The sums as they were when they were last released.

    They are released again, for all API servers, once there were `step` requests more.
    """
    path = folder / _RELEASED
    with FileLock(folder / f"{_RELEASED}.lock"):
        known = np.fromfile(path, _RECORD) if path.exists() else np.zeros(rows + 1, _RECORD)
        current = _current(folder, rows)
        if int(current["in_requests"][rows]) >= int(known["in_requests"][rows]) + step:
            with new_file(path) as stream:
                stream.write(current.tobytes())
            known = current
    return Totals(
        known["occurrences"][:rows], known["in_requests"][:rows], int(known["in_requests"][rows])
    )


def _current(folder: Path, rows: int) -> npt.NDArray[np.void]:
    total = np.zeros(rows + 1, _RECORD)
    for records in all_records(folder, _KIND, _RECORD):
        for name in ("occurrences", "in_requests"):
            total[name] += records[name]
    return total
