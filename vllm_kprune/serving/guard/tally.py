"""Count guarded rows on the device that they are on, and publish totals without waiting for it.

On a GPU each step adds to a tensor there and starts its copy to the host. A thread writes what has
arrived into the counter file about once a second, even when no further step comes. On a CPU it is
known at once whether there is anything to count. That is rare, and then it is written.
"""

import threading
import time

import torch

from vllm_kprune.serving.guard.counters import CounterFile

__all__ = ["Tally"]

_PUBLISH_SECONDS = 1.0
_DEVICE_COUNTERS = ("changed_steps", "dead_ends")


class Tally:
    """Totals of one process by label slot.

    All ranks of a tensor-parallel group see every request. They also see every row, unless rows are
    `sharded` between them. The first rank counts what all of them see.
    """

    def __init__(
        self, file: CounterFile, device: torch.device, rank: int = 0, sharded: bool = False
    ) -> None:
        self._file = file
        self._counts_requests = rank == 0
        self._counts_rows = rank == 0 or sharded
        self._totals = {
            name: torch.zeros(file.slots, dtype=torch.int64, device=device)
            for name in _DEVICE_COUNTERS
        }
        # On a CPU the totals are where they are read. Elsewhere `_arrived` is memory of the host to
        # which they are copied; pinned, because only then is the copy asynchronous.
        self._arrived = self._totals
        if self._counts_rows and device.type != "cpu":
            self._arrived = {
                name: torch.zeros(file.slots, dtype=torch.int64, pin_memory=True)
                for name in _DEVICE_COUNTERS
            }
            # Daemon: it must not keep an engine process from ending.
            threading.Thread(target=self._publish_for_ever, daemon=True).start()

    def slot(self, label: str) -> int:
        """The slot that a label counts in."""
        return self._file.slot(label)

    def request(self, slot: int) -> None:
        """Count a guarded request."""
        if self._counts_requests:
            self._file.add("requests", slot)

    def rows(self, counter: str, slots: torch.Tensor, happened: torch.Tensor) -> None:
        """Count the rows where it `happened` (bool [rows]), in their `slots` (int64 [rows])."""
        # Reading `happened` on a GPU would wait for it; there 0 is added, which costs less.
        on_host = self._arrived is self._totals
        if not self._counts_rows or (on_host and True not in happened.tolist()):
            return
        totals = self._totals[counter]
        totals.index_add_(0, slots, happened.to(totals.dtype))
        if on_host:
            self._publish(counter)
        else:
            self._arrived[counter].copy_(totals, non_blocking=True)

    def _publish(self, counter: str) -> None:
        self._file.raise_to(counter, self._arrived[counter].numpy())

    def _publish_for_ever(self) -> None:
        while True:
            time.sleep(_PUBLISH_SECONDS)
            for counter in _DEVICE_COUNTERS:
                self._publish(counter)
