"""Refused tokens become -inf in logits, in place.

Rows are grouped by automaton and state. How a group's rows are written is chosen by density, as
measured by `benchmarks/guard.py`: few refused tokens are filled by index, most by a bool row, and a
state that allows only a few tokens (inside a character) keeps these and fills the rest.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import TypeAlias

import torch

from vllm_kprune.guard.automaton import Automaton

__all__ = ["Groups", "Mask"]

Groups: TypeAlias = Mapping[tuple[Automaton, int], Sequence[int]]


class Mask:
    """What one device needs of automatons; made on first use, kept until `forget`."""

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self._device = torch.device(device)
        self._refused: dict[tuple[Automaton, int], torch.Tensor] = {}

    def apply_(
        self, logits: torch.Tensor, groups: Groups, changed: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Write -inf to refused tokens; returns `logits`, float [rows, num_rows].

        `groups`: (automaton, state) -> the rows in that state; rows in no group are left alone.
        `changed`, bool [rows]: set for the rows whose most likely token was refused.
        """
        for key, rows in groups.items():
            refused = self._row(key)
            for first, last in _runs(rows):
                block = logits[first:last]
                if changed is not None:
                    changed[first:last] = refused[block.argmax(dim=-1)]
                block.masked_fill_(refused, -torch.inf)
        return logits

    def _row(self, key: tuple[Automaton, int]) -> torch.Tensor:
        if key not in self._refused:
            automaton, state = key
            self._refused[key] = automaton.refused(state).to(self._device)
        return self._refused[key]

    def forget(self, automaton: Automaton) -> None:
        """Free what an automaton needed here."""
        for key in [key for key in self._refused if key[0] is automaton]:
            del self._refused[key]


def _runs(rows: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Runs of neighbouring rows: (first, last + 1)."""
    ordered = sorted(rows)
    first = 0
    for n in range(1, len(ordered) + 1):
        if n == len(ordered) or ordered[n] != ordered[n - 1] + 1:
            yield ordered[first], ordered[n - 1] + 1
            first = n
