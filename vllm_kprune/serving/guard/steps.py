"""What a step of the V2 runner does to guarded rows, in plain words: the reference, for CPUs.

Each slot keeps a state and how many committed tokens led to it (`taken`). A step advances it by the
tokens committed since, then by the drafts, row by row, and refuses tokens in every row.
`device_steps` does the same on a GPU, and a test compares the two.

What a row counts for is known only when its token is committed. The first row's token always is;
a draft's row has to wait until the next step shows how many drafts were accepted.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from vllm_kprune.guard.automaton import Automaton
from vllm_kprune.guard.mask import TokenMask
from vllm_kprune.serving.guard.tally import NOT_COUNTED, Tally

__all__ = ["HostSteps", "SlotEntry", "Steps", "refuses"]


@dataclass(frozen=True)
class SlotEntry:
    """A request that enters a slot, as a step needs to know it.

    `labels` are the numbers under which rows of the answer and of the reasoning count. `end_id`
    goes to rows without a token left, if the request is `constrained`. `stops`: vLLM ends the
    answer at `end_id`. `prefill` tokens are the text so far, and lead to `state`.
    """

    slot: int
    automaton: Automaton
    labels: tuple[int, int]
    end_id: int
    constrained: bool
    stops: bool
    prefill: int
    state: int


class Steps(Protocol):
    """What `slots.GuardedSlots` asks of the device."""

    def enter(self, entries: Iterable[SlotEntry], unguarded: Iterable[int]) -> None:
        """Guarded requests enter; slots that had one until now have none."""

    def leave(self) -> None:
        """Requests end: count what their last drafts were waiting for."""

    def apply(self, logits: torch.Tensor, context: Any) -> None:
        """Refuse tokens in place; `logits` float32 [rows, vocabulary]."""

    def withdraw(self, logits: torch.Tensor, token_ids: torch.Tensor) -> None:
        """Refuse tokens again that were forced after `apply`, inside of characters."""

    def forget(self, automaton: Automaton) -> None:
        """No request uses this automaton any more."""


def refuses(automaton: Automaton, state: int, token_id: int) -> bool:
    """Must this token not come next?"""
    return bool(automaton.class_next[state, int(automaton.token_class[token_id])] < 0)


@dataclass
class _Slot:
    """A guarded request.

    `waiting` has an entry for each draft of the last step: the label and the counters that it adds
    to if the draft was accepted. `has_ended`: vLLM drops what follows. `is_dead`: its dead end has
    been counted.
    """

    entry: SlotEntry
    state: int
    taken: int
    waiting: list[tuple[int, list[str]]] = field(default_factory=list)
    has_ended: bool = False
    is_dead: bool = False

    def advance(self, token_id: int) -> None:
        self.state = self.entry.automaton.advance(self.state, token_id)
        self.has_ended |= self.entry.stops and token_id == self.entry.end_id

    def label(self, state: int) -> int:
        first = self.entry.automaton.first_reasoning_state
        return self.entry.labels[first is not None and state >= first]


@dataclass(frozen=True)
class _Row:
    index: int
    local: int
    slot: _Slot
    state: int
    counts: bool


class HostSteps:
    """`Steps` for logits on a CPU."""

    def __init__(self, states: Any, tally: Tally) -> None:
        self._states = states
        self._tally = tally
        self._mask = TokenMask(states.device)
        self._slots: dict[int, _Slot] = {}
        self._rows: list[_Row] = []

    def enter(self, entries: Iterable[SlotEntry], unguarded: Iterable[int]) -> None:
        """See `Steps`."""
        for slot in unguarded:
            self._slots.pop(slot, None)
        for entry in entries:
            self._slots[entry.slot] = _Slot(entry, entry.state, entry.prefill)

    def leave(self) -> None:
        """See `Steps`."""
        lengths = self._states.total_len.gpu.tolist()
        for number, slot in self._slots.items():
            self._settle(slot, lengths[number])
        self._tally.fetch()

    def apply(self, logits: torch.Tensor, context: Any) -> None:
        """See `Steps`."""
        self._rows = list(self._guarded_rows(context))
        groups: dict[tuple[Automaton, int], list[int]] = {}
        for row in self._rows:
            groups.setdefault((row.slot.entry.automaton, row.state), []).append(row.index)
        changed = torch.zeros(len(logits), dtype=torch.bool)
        self._mask.apply_(logits, groups, changed)
        for row in self._rows:
            happened = ["changed_steps"] if changed[row.index] else []
            if row.slot.entry.constrained and logits[row.index].amax() == -torch.inf:
                # Any finite number does: it is the only one in its row.
                logits[row.index, row.slot.entry.end_id] = 0.0
                happened.append("dead_ends")
            self._count_row(row, happened)
        self._tally.fetch()

    def withdraw(self, logits: torch.Tensor, token_ids: torch.Tensor) -> None:
        """See `Steps`."""
        for row in self._rows:
            entry = row.slot.entry
            # Between characters the end of the answer is allowed. There the budget may force what
            # it likes.
            if refuses(entry.automaton, row.state, entry.end_id):
                for token_id in token_ids.tolist():
                    if refuses(entry.automaton, row.state, token_id):
                        logits[row.index, token_id] = -torch.inf

    def forget(self, automaton: Automaton) -> None:
        """See `Steps`."""
        self._mask.forget(automaton)

    def _guarded_rows(self, context: Any) -> Iterator[_Row]:
        """Every row of a guarded request, in the state that its text and its drafts lead to."""
        tensors = (
            *(context.expanded_idx_mapping, context.expanded_local_pos),
            *(context.pos, context.input_ids),
        )
        state, ended = 0, False
        for index, (number, local, position, token_id) in enumerate(
            zip(*(tensor.tolist() for tensor in tensors), strict=True)
        ):
            slot = self._slots.get(number)
            if slot is None:
                continue
            # 10 committed tokens and 2 drafts: rows at positions 9, 10, 11 with `local` 0, 1, 2.
            visible = position - local + 1
            if local == 0:
                self._advance(number, slot, visible)
                state, ended = slot.state, slot.has_ended
            else:
                # A request's rows are neighbours: each continues the one before by a draft.
                state = slot.entry.automaton.advance(state, token_id)
                ended |= slot.entry.stops and token_id == slot.entry.end_id
            # Rows before the end of a prompt are sampled too, and thrown away.
            yield _Row(index, local, slot, state, visible >= slot.entry.prefill and not ended)

    def _advance(self, number: int, slot: _Slot, visible: int) -> None:
        """Read the tokens committed since the last step. Drafts are not kept: they may go."""
        self._settle(slot, visible)
        if visible > slot.taken:
            committed = self._states.all_token_ids.gpu[number, slot.taken : visible]
            for token_id in committed.tolist():
                slot.advance(token_id)
            slot.taken = visible

    def _settle(self, slot: _Slot, length: int) -> None:
        """Count the last step's drafts: as many as there are tokens more than its first row's."""
        accepted = slot.waiting[: max(length - slot.taken - 1, 0)]
        for label, happened in accepted:
            self._count(slot, label, happened)
        slot.waiting = []

    def _count_row(self, row: _Row, happened: list[str]) -> None:
        label = row.slot.label(row.state)
        if row.local == 0 and row.counts:
            self._count(row.slot, label, happened)
        elif row.local:
            row.slot.waiting.append((label, happened if row.counts else []))

    def _count(self, slot: _Slot, label: int, happened: list[str]) -> None:
        if "changed_steps" in happened and label != NOT_COUNTED:
            self._tally.totals["changed_steps"][label] += 1
        if "dead_ends" in happened:
            # Reasoning without a guard has no label of its own.
            label = slot.entry.labels[0] if label == NOT_COUNTED else label
            if not slot.is_dead and label != NOT_COUNTED:
                self._tally.totals["dead_ends"][label] += 1
            slot.is_dead = True
