"""A step of the guard on a GPU: three kernels, whatever the number of policies and drafts.

Nothing waits for the device, and no temporary is larger than a few numbers for each block of a
row. What a step costs is written in `docs/operating.md`.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from vllm.triton_utils import triton

from vllm_kprune.guard.automaton import Automaton
from vllm_kprune.serving.guard import kernels
from vllm_kprune.serving.guard.device_memory import lasting_zeros, to_device
from vllm_kprune.serving.guard.slot_fields import FIELDS, NO_REASONING, UNGUARDED, Flag
from vllm_kprune.serving.guard.steps import SlotEntry
from vllm_kprune.serving.guard.tables import AutomatonTables
from vllm_kprune.serving.guard.tally import Tally

__all__ = ["DeviceSteps"]

# Columns for a program: few rows are cut into many blocks, so that the whole GPU has work.
_SMALL_BLOCK, _LARGE_BLOCK = 2048, 8192
_WARPS = {_SMALL_BLOCK: 4, _LARGE_BLOCK: 8}
_FEW_ROWS = 64


class DeviceSteps:
    """`Steps` by Triton kernels. `states` is vLLM's `LogitsProcRequestState`."""

    def __init__(self, states: Any, tally: Tally, num_drafts: int) -> None:
        device, slots = states.device, states.max_num_reqs
        self._states = states
        self._tally = tally
        self._num_drafts = num_drafts
        self._num_rows = states.vocab_size
        self._tables = AutomatonTables(device, self._num_rows)
        self._slots = lasting_zeros((slots, len(FIELDS)), torch.int64, device).fill_(UNGUARDED)
        # For each draft of the last step, what its row counts if it was accepted.
        self._waiting = lasting_zeros((slots, num_drafts), torch.int8, device)
        rows = slots * (1 + num_drafts)
        self._rows = lasting_zeros((rows,), torch.int64, device)
        self._largest = lasting_zeros((2 * self._most_blocks(rows),), torch.float32, device)
        if device.type != "cpu":
            self._compile()

    def enter(self, entries: Iterable[SlotEntry], unguarded: Iterable[int]) -> None:
        """See `Steps`: one copy to the device and one kernel for all of them."""
        rows = [(entry.slot, *self._fields(entry)) for entry in entries]
        rows += [(slot, UNGUARDED, *(0 for _ in FIELDS[1:])) for slot in unguarded]
        if rows:
            there = to_device(np.array(rows, np.int64), self._slots.device)
            self._slots.index_copy_(0, there[:, 0], there[:, 1:])

    def leave(self) -> None:
        """See `Steps`: one kernel for all slots, so that no list of them must be copied."""
        if self._num_drafts:
            kernels.settle_slots[(len(self._slots),)](
                *(self._slots, self._waiting, self._states.total_len.gpu),
                *(self._tally.on_device, self._tally.on_device.shape[1], self._num_drafts),
            )
            self._tally.fetch()

    def apply(self, logits: torch.Tensor, context: Any) -> None:
        """See `Steps`."""
        self._launch(
            logits,
            *(context.expanded_idx_mapping, context.expanded_local_pos),
            *(context.pos, context.input_ids),
        )
        self._tally.fetch()

    def withdraw(self, logits: torch.Tensor, token_ids: torch.Tensor) -> None:
        """See `Steps`."""
        kernels.withdraw_tokens[(len(logits),)](
            *(logits, *logits.stride(), self._rows, self._slots, self._tables.tensor),
            *(token_ids, len(token_ids), self._num_rows),
        )

    def forget(self, automaton: Automaton) -> None:
        """See `Steps`."""
        self._tables.forget(automaton)

    def _launch(
        self,
        logits: torch.Tensor,
        row_slots: torch.Tensor,
        row_locals: torch.Tensor,
        row_positions: torch.Tensor,
        row_tokens: torch.Tensor,
    ) -> None:
        rows, texts, totals = len(logits), self._states.all_token_ids.gpu, self._tally.on_device
        kernels.advance_rows[(rows,)](
            *(self._rows, self._slots, self._waiting, self._tables.tensor),
            *(totals, totals.shape[1], self._num_drafts),
            *(row_slots, row_locals, row_positions, row_tokens, rows),
            *(texts, texts.stride(0), self._num_rows),
        )
        block = _block_size(rows)
        num_blocks = triton.cdiv(self._num_rows, block)
        kernels.refuse_tokens[(rows, num_blocks)](
            *(logits, *logits.stride(), self._rows, self._slots, self._tables.tensor),
            *(self._largest, num_blocks, self._num_rows),
            BLOCK=block,
            num_warps=_WARPS[block],
        )
        kernels.settle_rows[(rows,)](
            *(logits, *logits.stride(), self._rows, self._slots, self._waiting),
            *(self._largest, num_blocks, totals, totals.shape[1], self._num_drafts),
            BLOCKS=triton.next_power_of_2(num_blocks),
        )

    def _fields(self, entry: SlotEntry) -> tuple[int, ...]:
        automaton = entry.automaton
        first = automaton.first_reasoning_state
        flags = Flag.CONSTRAINED * entry.constrained | Flag.STOPS * entry.stops
        return (
            *(self._tables.offset(automaton), automaton.class_next.shape[1]),
            NO_REASONING if first is None else first,
            *(*entry.labels, entry.end_id, flags),
            *(entry.prefill, entry.state, entry.prefill),
        )

    def _most_blocks(self, rows: int) -> int:
        """The most blocks that a step can have."""
        few = min(rows, _FEW_ROWS)
        return max(n * triton.cdiv(self._num_rows, _block_size(n)) for n in (few, rows))

    def _compile(self) -> None:
        """Compile the kernels while the engine starts and not at its first guarded request."""
        device = self._slots.device
        for rows in {1, min(_FEW_ROWS + 1, len(self._rows))}:
            logits = torch.zeros((rows, self._num_rows), device=device)
            numbers = (torch.zeros(rows, dtype=kind, device=device) for kind in _ROW_TYPES)
            self._launch(logits, *numbers)
        self.leave()


# Of `LogitsContext` in vLLM 0.32: slots, places among a request's rows, positions, tokens.
_ROW_TYPES = (torch.int64, torch.int32, torch.int64, torch.int32)


def _block_size(rows: int) -> int:
    return _SMALL_BLOCK if rows <= _FEW_ROWS else _LARGE_BLOCK
