"""The guard on vLLM's V2 model runner: which request has which slot, and what that means.

The last token is on the device only, so states are there too (`steps`), and nothing waits for the
GPU. A row of the logits is not a request: rows are reordered at every step, and with speculative
decoding a request has one for each draft token.
"""

import os
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from vllm_kprune.guard.automaton import Automaton
from vllm_kprune.serving.compat.engine import has_triton, staged_tokens
from vllm_kprune.serving.guard.live import keep_slots
from vllm_kprune.serving.guard.requests import Guards, RequestGuard
from vllm_kprune.serving.guard.steps import HostSteps, SlotEntry, Steps
from vllm_kprune.serving.guard.tally import NOT_COUNTED, Tally

__all__ = ["GuardedSlots"]


class GuardedSlots:
    """Guarded requests by slot; `states` is vLLM's `LogitsProcRequestState`."""

    def __init__(self, guards: Guards, tally: Tally, states: Any, num_drafts: int) -> None:
        self._guards = guards
        self._tally = tally
        self._states = states
        self._steps = _make_steps(states, tally, num_drafts)
        slots = states.max_num_reqs
        self._automata: list[Automaton | None] = [None] * slots
        self._is_guarded = np.zeros(slots, np.bool_)
        # The device is not told that a request has ended, only who is next.
        self._on_device = np.zeros(slots, np.bool_)
        # What the device has to be told at the next step; None: the slot has no guard any more.
        self._entered: dict[int, SlotEntry | None] = {}
        guards.when_given_up(self._steps.forget)
        keep_slots(states.all_token_ids, self)

    def add_request(self, slot: int, params: Any) -> bool:
        """A request enters a slot that another may have left. True if it is guarded."""
        # A vLLM that could not be wrapped does not say when a request ends.
        self.remove_request(slot)
        guard = self._guards.of_request(params, in_use=self._in_use())
        if guard is None:
            self._entered.pop(slot, None)
            if self._on_device[slot]:
                self._entered[slot] = None
            return False
        self._automata[slot], self._is_guarded[slot] = guard.automaton, True
        self._entered[slot] = self._entry(slot, guard, params)
        return True

    def remove_request(self, slot: int) -> None:
        """A request ends or is preempted. Before its slot's numbers are overwritten."""
        if self._is_guarded[slot]:
            self._automata[slot], self._is_guarded[slot] = None, False
            had_no_step_yet = self._entered.pop(slot, None)
            if not had_no_step_yet:
                self._steps.leave()

    def apply_staged_writes(self) -> None:
        """Tell the device who has entered since the last step."""
        if not self._entered:
            return
        entered, self._entered = self._entered, {}
        entries = [self._with_state(entry) for entry in entered.values() if entry]
        unguarded = [slot for slot, entry in entered.items() if entry is None]
        self._steps.enter(entries, unguarded)
        self._on_device[unguarded] = False
        self._on_device[[entry.slot for entry in entries]] = True

    def apply(self, logits: torch.Tensor, context: Any) -> torch.Tensor:
        """Refuse tokens, in place; `logits` float32 [rows, vocabulary], rows as in `context`."""
        # From the host's copy of the mapping: the one on the device would have to be waited for.
        if self._is_guarded[context.idx_mapping_np].any():
            self._steps.apply(logits, context)
        return logits

    def withdraw(self, logits: torch.Tensor, context: Any, token_ids: torch.Tensor) -> None:
        """After `apply`: refuse tokens again that were forced inside of characters."""
        if self._is_guarded[context.idx_mapping_np].any():
            self._steps.withdraw(logits, token_ids)

    def _entry(self, slot: int, guard: RequestGuard, params: Any) -> SlotEntry:
        labels = self._tally.slots_of(guard.automaton)
        prefill = int(self._states.prefill_len.np[slot])
        # A request that was preempted comes back with its tokens.
        if guard.counted and prefill == self._states.prompt_len.np[slot]:
            self._tally.request(labels[0])
        counts = guard.counted and self._tally.counts_rows
        # Now or never: vLLM writes what is staged to the device before it calls our
        # `apply_staged_writes`.
        text = staged_tokens(self._states.all_token_ids, slot)
        return SlotEntry(
            slot=slot,
            automaton=guard.automaton,
            labels=labels if counts else (NOT_COUNTED, NOT_COUNTED),
            end_id=guard.end_id,
            constrained=guard.constrained,
            stops=guard.end_id in (params.eos_token_id, *(params.stop_token_ids or ())),
            prefill=prefill,
            state=_NOT_READ if text is None else self._state_after(text, slot, guard.automaton),
        )

    def _state_after(self, text: list[int], slot: int, automaton: Automaton) -> int:
        """The state after a prompt and, after a preemption, the answer so far."""
        return automaton.state_after(text, int(self._states.prompt_len.np[slot]))

    def _with_state(self, entry: SlotEntry) -> SlotEntry:
        if entry.state != _NOT_READ:
            return entry
        # Read back from the device; this waits for the GPU.
        ids: list[int] = self._states.all_token_ids.gpu[entry.slot, : entry.prefill].tolist()
        return replace(entry, state=self._state_after(ids, entry.slot, entry.automaton))

    def _in_use(self) -> Iterable[Automaton]:
        return (automaton for automaton in self._automata if automaton is not None)


_NOT_READ = -1


def _make_steps(states: Any, tally: Tally, num_drafts: int) -> Steps:
    # `TRITON_INTERPRET=1` runs kernels in Python, for tests.
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    if has_triton() and (states.device.type != "cpu" or interpreted):
        # Imported here: without Triton there is nothing to import.
        from vllm_kprune.serving.guard.device_steps import DeviceSteps

        return DeviceSteps(states, tally, num_drafts)
    return HostSteps(states, tally)
