"""The tables of all automatons that are in use, in one tensor on the device.

It is made when the engine starts, so that vLLM sees it when it measures its memory, and grows only
if more policies are in use at once than it has room for. Which automatons stay is decided in
`requests.Guards`, which tells when it drops one.
"""

import numpy as np
import torch

from vllm_kprune.guard.automaton import Automaton
from vllm_kprune.serving.compat import logger
from vllm_kprune.serving.guard.device_memory import lasting_zeros, to_device

__all__ = ["AutomatonTables"]

# As many as `requests.Guards` keeps.
_POLICIES = 16
# Numbers of a policy's table of states and classes: 10,000 to 30,000, and up to 72,000 if a model's
# reasoning has a policy of its own.
_STATES_AND_CLASSES = 80_000
# Numbers, 2 bytes each: GPUs read 16 bytes at a time.
_ALIGNMENT = 8


class AutomatonTables:
    """`tensor`, int16, holds at each automaton's offset one after the other: `token_class`,
    `class_fallback`, and the rows of `class_next`."""

    def __init__(self, device: torch.device, num_rows: int, policies: int = _POLICIES) -> None:
        size = policies * _round_up(num_rows + _STATES_AND_CLASSES)
        self.tensor = lasting_zeros((size,), torch.int16, device)
        self._places: dict[Automaton, tuple[int, int]] = {}
        logger.info(
            "kprune: language guard: %.1f MB on the device for the tables of %d policies",
            *(self.tensor.nbytes / 1e6, policies),
        )

    def offset(self, automaton: Automaton) -> int:
        """Where an automaton's tables begin; copied to the device if they are not there."""
        if automaton not in self._places:
            numbers = _numbers(automaton)
            begin = self._gap(_round_up(len(numbers)))
            self._places[automaton] = begin, begin + _round_up(len(numbers))
            there = to_device(numbers, self.tensor.device)
            self.tensor[begin : begin + len(numbers)].copy_(there)
        return self._places[automaton][0]

    def forget(self, automaton: Automaton) -> None:
        """Let others have the place. What is still running on the device comes first, in order."""
        self._places.pop(automaton, None)

    def _gap(self, size: int) -> int:
        """The beginning of the first gap that is large enough."""
        begin = 0
        for taken, end in sorted(self._places.values()):
            if taken - begin >= size:
                return begin
            begin = end
        if begin + size > len(self.tensor):
            self._grow(begin + size)
        return begin

    def _grow(self, size: int) -> None:
        grown = lasting_zeros((max(size, 2 * len(self.tensor)),), torch.int16, self.tensor.device)
        grown[: len(self.tensor)] = self.tensor
        self.tensor = grown
        logger.warning(
            "kprune: language guard: %d policies are in use at once, and their tables now take "
            "%.1f MB on the device",
            *(len(self._places) + 1, grown.nbytes / 1e6),
        )


def _numbers(automaton: Automaton) -> np.ndarray:
    tables = (automaton.token_class, automaton.class_fallback, automaton.class_next)
    return np.concatenate([table.numpy().ravel() for table in tables])


def _round_up(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT
