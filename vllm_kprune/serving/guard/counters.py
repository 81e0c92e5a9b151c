"""Counts of the guard, which engine processes write and every API server reads.

vLLM does not sample in the process that answers `/metrics`, and several API servers may answer; so
the counts are in files (see `counter_files`).
"""

import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from vllm_kprune.profile import LANGUAGES
from vllm_kprune.serving.counter_files import all_records, new_records

__all__ = [
    "COUNTERS",
    "REASONING",
    "CounterFile",
    "explain_dead_end",
    "read_totals",
    "well_known_labels",
]

COUNTERS = ("requests", "changed_steps", "dead_ends")
OTHER = "other"
# How labels of what is counted in a model's reasoning begin; the rest is the policy's label.
REASONING = "reasoning:"
_KIND = "counters"
# Labels that nobody expects: requests choose them, and each is a time series in Prometheus.
_MOST_OTHERS = 32
_JUST_BEFORE_SECONDS = 5.0
# A file has a few hundred of these, 96 bytes each, written by one process through `mmap` and read
# by another.
_RECORD = np.dtype(
    [("label", "S64"), *((name, "<u8") for name in COUNTERS), ("dead_end_at", "<f8")]
)


class CounterFile:
    """This process's counts, by label: `expected` and 32 more by name, others as "other" (slot 0).

    Labels of reasoning count on their own. Without a folder it counts in memory only.
    """

    def __init__(self, folder: Path | None, expected: Iterable[str] = ()) -> None:
        self._slots: dict[str, int] = {}
        self._expected, self._others = frozenset(expected), 0
        most = 2 * len(self._expected) + _MOST_OTHERS
        self._records = new_records(folder, _KIND, _RECORD, most + 1)
        self._records["label"][0] = OTHER.encode()

    @property
    def slots(self) -> int:
        """How many slots there are."""
        return len(self._records)

    def slot(self, label: str) -> int:
        """The slot of a label, which it gets at its first use."""
        is_expected = label.removeprefix(REASONING) in self._expected
        if label not in self._slots and (is_expected or self._others < _MOST_OTHERS):
            # Odd sets that a client makes up must not take the names of those that people use.
            self._others += not is_expected
            # Slot 0 is "other".
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


def well_known_labels() -> Iterator[str]:
    """Labels of single languages, of each with English, and of these with Chinese."""
    for code in LANGUAGES:
        for others in ((), ("en",), ("en", "zh")):
            label = "+".join(sorted({code, *others}))
            yield from (label, f"{label}+hanja") if code == "ko" else (label,)


def read_totals(folder: Path | None) -> dict[str, dict[str, int]]:
    """Label -> counter -> number, over all processes; labels without counts are left out."""
    totals: dict[str, dict[str, int]] = defaultdict(lambda: dict.fromkeys(COUNTERS, 0))
    for records in all_records(folder, _KIND, _RECORD):
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
    files = all_records(folder, _KIND, _RECORD)
    moments = [float(records["dead_end_at"].max()) for records in files]
    latest = max(moments, default=0.0)
    if (time.time() if now is None else now) - latest > _JUST_BEFORE_SECONDS:
        return None
    return (
        "no token was left that both the request's grammar (structured output, tool call) and the "
        "language guard allow; ask for other languages (vllm_xargs kprune_languages), allow the "
        "characters (kprune_allow), or change the schema"
    )
