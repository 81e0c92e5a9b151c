"""Count guarded rows on the device that they are on, and publish totals without waiting for it.

On a GPU each step adds to a tensor there and starts its copy to the host. A thread writes what has
arrived into the counter file about once a second, even when no further step comes. On a CPU the
totals are written at once.
"""

import threading
import time
from collections.abc import Callable

import torch

from vllm_kprune.guard.automaton import Automaton
from vllm_kprune.serving.guard.counters import REASONING, CounterFile
from vllm_kprune.serving.guard.device_memory import lasting_zeros

__all__ = ["NOT_COUNTED", "ROW_COUNTERS", "Tally"]

# In place of a label's slot.
NOT_COUNTED = -1
_PUBLISH_SECONDS = 1.0
# What is counted by row, in the order of `Tally.on_device`.
ROW_COUNTERS = ("changed_steps", "dead_ends")


class Tally:
    """Totals of one process by label slot.

    All ranks of a tensor-parallel group see every request. They also see every row, unless rows are
    shared out between them: `is_sharded` tells, once the engine has sampled. The first rank counts
    what all of them see. `on_device` holds the totals, int64 [counters, label slots]; `totals` are
    its rows by name.
    """

    def __init__(
        self,
        file: CounterFile,
        device: torch.device,
        rank: int = 0,
        is_sharded: Callable[[], bool] = lambda: False,
    ) -> None:
        self._file = file
        self._rank = rank
        self._is_sharded = is_sharded
        shape = (len(ROW_COUNTERS), file.slots)
        self.on_device = lasting_zeros(shape, torch.int64, device)
        self.totals = dict(zip(ROW_COUNTERS, self.on_device, strict=True))
        # On a CPU the totals are where they are read. Elsewhere `_arrived` is memory of the host to
        # which they are copied; pinned, because only then is the copy asynchronous.
        self._arrived = self.on_device
        if device.type != "cpu":
            self._arrived = torch.zeros(shape, dtype=torch.int64, pin_memory=True)
            # Daemon: it must not keep an engine process from ending.
            threading.Thread(target=self._publish_for_ever, daemon=True).start()

    @property
    def counts_rows(self) -> bool:
        """Do rows of this process count?"""
        return self._rank == 0 or self._is_sharded()

    def slot(self, label: str) -> int:
        """The slot that a label counts in."""
        return self._file.slot(label)

    def slots_of(self, automaton: Automaton) -> tuple[int, int]:
        """The slots for rows of the answer and of the reasoning; the latter may be NOT_COUNTED."""
        thinking = automaton.reasoning_label
        return (
            self.slot(automaton.label),
            NOT_COUNTED if thinking is None else self.slot(REASONING + thinking),
        )

    def request(self, slot: int) -> None:
        """Count a guarded request."""
        if self._rank == 0:
            self._file.add("requests", slot)

    def rows(self, counter: str, slots: torch.Tensor, happened: torch.Tensor) -> None:
        """Count the rows where it `happened` (bool [rows]), in their `slots` (int64 [rows])."""
        # Reading `happened` on a GPU would wait for it; there 0 is added, which costs less.
        on_host = self._arrived is self.on_device
        if not self.counts_rows or (on_host and True not in happened.tolist()):
            return
        self.totals[counter].index_add_(0, slots, happened.to(torch.int64))
        self.fetch()

    def fetch(self) -> None:
        """Bring the totals to where they are published from, without waiting for them."""
        if self._arrived is self.on_device:
            self._publish()
        else:
            self._arrived.copy_(self.on_device, non_blocking=True)

    def _publish(self) -> None:
        for counter, totals in zip(ROW_COUNTERS, self._arrived.numpy(), strict=True):
            self._file.raise_to(counter, totals)

    def _publish_for_ever(self) -> None:
        while True:
            time.sleep(_PUBLISH_SECONDS)
            self._publish()
