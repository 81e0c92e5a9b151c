"""The guard on vLLM's V2 model runner: states live on the device, by request slot.

The last token is on the device only, so the states are there too, and nothing waits for the GPU. A
row of the logits is not a request: rows are reordered at every step, and with speculative decoding
a request has one for each draft token. A slot keeps its state and how many tokens led to it. Each
step advances it by the tokens committed since, and then by the drafts, row by row.
"""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from vllm_kprune.guard.automaton import Automaton
from vllm_kprune.serving.compat.engine import staged_tokens
from vllm_kprune.serving.guard.requests import Guards
from vllm_kprune.serving.guard.tally import Tally

__all__ = ["GuardedSlots"]

_PER_SLOT = ("number", "label", "end", "constrained")
# In "number": no automaton. Numbers begin at 0.
_UNGUARDED = -1


class GuardedSlots:
    """Guarded requests by slot; `states` is vLLM's `LogitsProcRequestState`."""

    def __init__(self, guards: Guards, tally: Tally, states: Any, num_drafts: int) -> None:
        self._guards = guards
        self._tally = tally
        self._states = states
        self._num_drafts = num_drafts
        slots = states.max_num_reqs
        # The interface does not say when a request ends: a slot keeps its last one until another
        # enters.
        self._automata: list[Automaton | None] = [None] * slots
        self._tables: dict[Automaton, tuple[int, Automaton]] = {}
        self._numbers_given = 0
        self._host = {name: np.full(slots, _UNGUARDED, np.int64) for name in _PER_SLOT}
        self._device = {name: self._tensor(values) for name, values in self._host.items()}
        self._state = self._tensor(np.zeros(slots, np.int64))
        # `_state` belongs to the moment when `_taken` tokens of the slot had been read.
        self._taken = self._tensor(np.zeros(slots, np.int64))
        self._host_state = np.zeros(slots, np.int64)
        self._entered: dict[int, None] = {}
        self._staged: dict[int, list[int] | None] = {}
        guards.when_given_up(self._give_up)

    def add_request(self, slot: int, params: Any) -> bool:
        """A request enters a slot that another may have left. True if it is guarded."""
        guard = self._guards.of_request(params, in_use=self._in_use())
        self._entered[slot] = None
        self._automata[slot] = guard.automaton if guard else None
        if guard is None:
            for values in self._host.values():
                values[slot] = _UNGUARDED
            return False
        # Now or never: vLLM writes what is staged to the device before it calls our
        # `apply_staged_writes`.
        self._staged[slot] = staged_tokens(self._states.all_token_ids, slot)
        # "constrained" is 0 or 1 from here on, and _UNGUARDED (-1) in other slots: compare with 1.
        label = self._tally.slot(guard.automaton.policy.label)
        self._host["number"][slot] = self._table(guard.automaton)[0]
        self._host["label"][slot] = label
        self._host["end"][slot] = guard.end_id
        self._host["constrained"][slot] = guard.constrained
        if self._states.prefill_len.np[slot] == self._states.prompt_len.np[slot]:
            self._tally.request(label)  # a request that was preempted comes back with its tokens
        return True

    def apply_staged_writes(self) -> None:
        """Copy to the device the requests that entered since the last step, and their states."""
        if self._entered:
            self._device = {name: self._tensor(values) for name, values in self._host.items()}
            self._read_entered()

    def apply(self, logits: torch.Tensor, context: Any) -> torch.Tensor:
        """Refuse tokens, in place; `logits` float32 [rows, vocabulary], rows as in `context`."""
        # From the host's copy of the mapping: the one on the device would have to be waited for.
        present = {self._automata[slot] for slot in context.idx_mapping_np} - {None}
        if not present:
            return logits
        slots = context.expanded_idx_mapping.long()
        numbers = self._device["number"][slots]
        states = self._row_states(context, slots, present)
        likeliest = logits.amax(dim=1)
        for number, automaton in self._used(present):
            # [rows, classes], then [rows, vocabulary]. Computed for all rows and used for this
            # automaton's: rows of others may have a state that this table does not have, hence the
            # clamp.
            following = automaton.class_next[states.clamp(max=automaton.num_states - 1)]
            # `int()` because torch takes no int16 as an index.
            refused = (following < 0)[:, automaton.token_class.int()]
            logits.masked_fill_(refused & (numbers == number).unsqueeze(1), float("-inf"))
        self._settle(logits, slots, likeliest)
        return logits

    def _settle(self, logits: torch.Tensor, slots: torch.Tensor, likeliest: torch.Tensor) -> None:
        """Count changed rows, and give rows with no token left their end token (see `rows`)."""
        left = logits.amax(dim=1)
        # Unguarded rows have -1, which is no index. They count 0 in slot 0, where they change
        # nothing.
        labels = self._device["label"][slots].clamp(min=0)
        # The largest logit fell: so the most likely token was refused. On a tie with an allowed
        # token it did not fall, and nothing changed.
        guarded = self._device["number"][slots] != _UNGUARDED
        self._tally.rows("changed_steps", labels, guarded & (left < likeliest))
        dead = (self._device["constrained"][slots] == 1) & (left == float("-inf"))
        rows, ends = torch.arange(len(slots), device=logits.device), self._device["end"][slots]
        # Again for unguarded rows: they write back what column 0 had.
        ends = ends.clamp(min=0)
        logits[rows, ends] = torch.where(dead, 0.0, logits[rows, ends])
        self._tally.rows("dead_ends", labels, dead)

    def _row_states(
        self, context: Any, slots: torch.Tensor, present: set[Automaton | None]
    ) -> torch.Tensor:
        """The state of every row, int64 [rows], after the tokens committed since the last step."""
        local = context.expanded_local_pos.long()
        # For example 10 committed tokens and 2 drafts: rows at positions 9, 10, 11 with `local` 0,
        # 1, 2. 9 - 0 + 1 = 10 - 1 + 1 = 10: every row of the request finds the same number.
        visible = context.pos.long() - local + 1  # tokens before the request's first row's sample
        tokens = self._states.all_token_ids.gpu
        state, taken = self._state[slots], self._taken[slots]
        # A step commits at most the accepted drafts and one more token. A fixed number of rounds,
        # because asking how many are needed would wait for the GPU; rounds with nothing to read
        # change nothing.
        for _ in range(1 + self._num_drafts):
            behind = taken < visible
            # At the end of the context `taken` is one past the last column; `behind` is False then.
            token = tokens[slots, taken.clamp(max=tokens.shape[1] - 1)]
            state = torch.where(behind, self._step(present, slots, state, token), state)
            taken = taken + behind
        # Kept before the drafts: those may be rejected. Rows of one slot write the same value, so
        # it does not matter which of them comes last.
        self._state[slots], self._taken[slots] = state, taken
        for draft in range(1, 1 + self._num_drafts):
            # Rows of a request are neighbours, in the order of their drafts. So row n continues
            # from row n - 1 by the draft fed at row n. What `roll` brings to row 0 is not used: its
            # `local` is 0.
            following = self._step(present, slots, state.roll(1), context.input_ids)
            state = torch.where(local == draft, following, state)
        return state

    def _step(
        self,
        present: Iterable[Automaton | None],
        slots: torch.Tensor,
        state: torch.Tensor,
        token: torch.Tensor,
    ) -> torch.Tensor:
        """The states after one more token each, by the automaton of each row's slot."""
        after = torch.zeros_like(state)
        numbers = self._device["number"][slots]
        for number, automaton in self._used(present):
            # As in `Automaton.advance`: an id outside of the table leads to state 0, which `after`
            # has already.
            known = token.long().clamp(0, automaton.num_rows - 1)
            following = automaton.next_states(state.clamp(max=automaton.num_states - 1), known)
            after = torch.where((numbers == number) & (token == known), following.long(), after)
        return after

    def _read_entered(self) -> None:
        """Find the states of requests that entered since the last step, from their text so far."""
        for slot in self._entered:
            # Prompt and, after a preemption, the answer so far: all that the slot's tokens are now.
            automaton, length = self._automata[slot], int(self._states.prefill_len.np[slot])
            if automaton is not None:
                text = self._staged.pop(slot, None) or self._text(slot, length)
                self._host_state[slot] = automaton.state_after(text)
        slots = np.array(list(self._entered))
        there = self._tensor(slots)
        # For unguarded requests too: their state is some old number, which no row uses.
        self._state[there] = self._tensor(self._host_state[slots])
        self._taken[there] = self._tensor(self._states.prefill_len.np[slots].astype(np.int64))
        self._entered = {}

    def _text(self, slot: int, length: int) -> list[int]:
        """A slot's tokens, read back from the device; this waits for the GPU."""
        ids: list[int] = self._states.all_token_ids.gpu[slot, :length].tolist()
        return ids

    def _used(self, present: Iterable[Automaton | None]) -> list[tuple[int, Automaton]]:
        """Each automaton's number, and the automaton with its tables on the device."""
        return [self._table(automaton) for automaton in present if automaton is not None]

    def _table(self, automaton: Automaton) -> tuple[int, Automaton]:
        """The automaton's number, and the same automaton with its tables on the device."""
        if automaton not in self._tables:
            device = self._states.device
            there = replace(
                automaton,
                token_class=automaton.token_class.to(device),
                class_next=automaton.class_next.to(device),
                class_fallback=automaton.class_fallback.to(device),
            )
            # Counted up and never given again: a slot that still has the number of an automaton
            # that was dropped must not match another one.
            self._tables[automaton] = self._numbers_given, there
            self._numbers_given += 1
        return self._tables[automaton]

    def _in_use(self) -> Iterable[Automaton]:
        return (automaton for automaton in self._automata if automaton is not None)

    def _give_up(self, automaton: Automaton) -> None:
        self._tables.pop(automaton, None)

    def _tensor(self, values: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(values.copy()).to(self._states.device)
