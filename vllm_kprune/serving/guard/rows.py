"""The guard on vLLM's V1 model runner: a row of the logits is a request of the persistent batch.

A row's state follows from its request's own token list. vLLM appends to that list and, when it
schedules ahead, replaces placeholders (-1) in it before processors run. A list that did not grow by
exactly one token since the last step (a resumed request, discarded tokens) is read again.

What is counted are tokens that become part of an answer. A step that reads a part of a prompt
samples a token and drops it, and nothing tells such a step from others, except that the list does
not grow after it. So a step counts at once if the list has just grown, which means that the prompt
has been read. Otherwise it counts once the list has grown.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from vllm_kprune.guard.automaton import Automaton
from vllm_kprune.guard.mask import TokenMask
from vllm_kprune.serving.guard.requests import Guards, RequestGuard
from vllm_kprune.serving.guard.steps import refuses
from vllm_kprune.serving.guard.tally import Tally

__all__ = ["GuardedRows"]

_UNCOUNTED = -1


@dataclass(slots=True, eq=False)
class _Row:
    """A guarded request. `output` is vLLM's own list, which grows; `guard` says the rest.

    `state` belongs to the moment when the output had `length` tokens and ended with `last`.
    `slots` are the label slots of answer and reasoning; `dead`, bool [1], tells whether a dead end
    was counted.
    """

    guard: RequestGuard
    prompt: list[int]
    output: list[int]
    slots: tuple[int, int]
    dead: torch.Tensor
    state: int = 0
    length: int = -1
    last: int = -1

    def follow(self) -> bool:
        """Read what has become of the output. True if it grew by one token since the last step."""
        automaton, output, length = self.guard.automaton, self.output, len(self.output)
        has_grown = False
        # `length` -1: a new row, whose prompt has not been read yet.
        if self.length < 0 or not self._still_holds():
            self.state = automaton.state_after([*self.prompt, *output], len(self.prompt))
        # Otherwise the list is as long as before, and the state still holds.
        elif has_grown := length == self.length + 1:
            self.state = automaton.advance(self.state, output[-1])
        self.length, self.last = length, output[-1] if output else -1
        return has_grown

    def _still_holds(self) -> bool:
        """Is this the list of the last step, with at most one more token?"""
        known = self.length
        if not known <= len(self.output) <= known + 1:
            return False
        # The length alone is not enough: tokens can be discarded and others sampled in their place.
        return not known or self.output[known - 1] == self.last

    @property
    def slot(self) -> int:
        """The label slot in which the current state counts."""
        first = self.guard.automaton.first_reasoning_state
        return self.slots[first is not None and self.state >= first]

    @property
    def slot_of_end(self) -> int:
        """The label slot in which a dead end counts: unguarded reasoning has none of its own."""
        return self.slots[0] if self.slot == _UNCOUNTED else self.slot

    @property
    def is_over(self) -> bool:
        """Has the answer ended? vLLM may schedule one step more before it knows."""
        return self.length > 0 and self.last == self.guard.end_id


@dataclass(frozen=True)
class _Waiting:
    """Rows of a step whose tokens may be dropped: (row, its index and slot, length of its output).

    `refused_likeliest` is as in `GuardedRows`, of that step.
    """

    rows: list[tuple[_Row, int, int, int]]
    refused_likeliest: torch.Tensor


class GuardedRows:
    """The guarded requests of the batch, by row."""

    def __init__(self, guards: Guards, mask: TokenMask, tally: Tally, device: torch.device) -> None:
        self._guards = guards
        self._mask = mask
        guards.when_given_up(mask.forget)
        self._tally = tally
        self._device = device
        self._rows: dict[int, _Row] = {}
        self._waiting: _Waiting | None = None
        self._constrained_rows: list[_Row] = []
        self._changed()

    def update(self, batch: Any) -> None:
        """Follow a `BatchUpdate`, in its documented order: removed, added, moved."""
        if batch is None:
            return
        self._count_waiting()
        # The order matters: an added request may take a row that was just removed, and a moved one
        # may be one that was just added.
        for index in batch.removed:
            self._rows.pop(index, None)
        for index, params, prompt, output in batch.added:
            self._put(index, self._new_row(params, prompt, output))
        for source, target, direction in batch.moved:
            # Both are taken out before either is put back, or a swap would lose one of them.
            moved, replaced = self._rows.pop(source, None), self._rows.pop(target, None)
            self._put(target, moved)
            if direction.name == "SWAP":
                self._put(source, replaced)
        self._changed()

    def _put(self, index: int, row: _Row | None) -> None:
        if row is None:
            self._rows.pop(index, None)
        else:
            self._rows[index] = row

    def _new_row(self, params: Any, prompt: list[int] | None, output: list[int]) -> _Row | None:
        guard = self._guards.of_request(params, in_use=self._automata())
        if guard is None:
            return None
        slots = self._slots(guard)
        if guard.counted and not output:  # a preempted request comes back with its tokens
            self._tally.request(slots[0])
        # The lists themselves, not copies: vLLM appends the sampled tokens to its output.
        dead = torch.zeros(1, dtype=torch.bool, device=self._device)
        return _Row(guard, prompt or [], output, slots, dead)

    def _slots(self, guard: RequestGuard) -> tuple[int, int]:
        if not guard.counted:
            return _UNCOUNTED, _UNCOUNTED
        return self._tally.slots_of(guard.automaton)

    def _automata(self) -> Iterable[Automaton]:
        return (row.guard.automaton for row in self._rows.values())

    def _changed(self) -> None:
        """Put on the device what each step needs to know, once for each change of the batch."""
        for row, dead in zip(self._constrained_rows, self._dead_so_far(), strict=True):
            row.dead = dead
        constrained = {i: row for i, row in self._rows.items() if row.guard.constrained}
        self._constrained_rows = list(constrained.values())
        # Shapes: [last guarded row + 1], as `_labels` and `_is_counted` below; the others
        # [constrained].
        self._refused_likeliest = self._tensor([0] * (1 + max(self._rows, default=-1))).bool()
        self._constrained = self._tensor(list(constrained))
        self._ends = self._tensor([row.guard.end_id for row in self._constrained_rows])
        if self._constrained_rows:
            self._dead = torch.cat([row.dead for row in self._constrained_rows])
        # Written to the device by the next step, which knows the phase of each row.
        self._on_device: list[int] | None = None
        self._ends_in: list[int] | None = None

    def _dead_so_far(self) -> Iterable[torch.Tensor]:
        return self._dead.split(1) if self._constrained_rows else ()

    def _tensor(self, numbers: list[int]) -> torch.Tensor:
        return torch.tensor(numbers, dtype=torch.int64, device=self._device)

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """Refuse tokens, in place; `logits` float32 [rows of the batch, vocabulary]."""
        if not self._rows:
            return logits
        self._count_waiting()
        groups: dict[tuple[Automaton, int], list[int]] = {}
        slots, waiting = [_UNCOUNTED] * len(self._refused_likeliest), []
        for index, row in self._rows.items():
            has_grown = row.follow()
            # Rows in the same state share one mask. Most rows are in state 0, between characters.
            groups.setdefault((row.guard.automaton, row.state), []).append(index)
            if has_grown and not row.is_over:
                slots[index] = row.slot
            elif not has_grown and row.slot != _UNCOUNTED:
                waiting.append((row, index, row.slot, row.length))
        self._mask.apply_(logits, groups, self._refused_likeliest)
        self._count(slots, waiting)
        if len(self._ends):
            self._end_dead_rows(logits)
        return logits

    def withdraw(self, logits: torch.Tensor, token_ids: Sequence[int]) -> None:
        """After `apply`: refuse tokens again that were forced inside of characters."""
        for index, row in self._rows.items():
            automaton = row.guard.automaton
            # Between characters the end of the answer is allowed, and anything may be forced.
            if refuses(automaton, row.state, row.guard.end_id):
                for token_id in token_ids:
                    if refuses(automaton, row.state, token_id):
                        logits[index, token_id] = -torch.inf

    def _count(self, slots: list[int], waiting: list[tuple[_Row, int, int, int]]) -> None:
        # Seldom different from the last step: when a row leaves its prompt, or its reasoning.
        if slots != self._on_device:
            self._on_device, numbers = slots, self._tensor(slots)
            self._labels, self._is_counted = numbers.clamp(min=0), numbers != _UNCOUNTED
        happened = self._refused_likeliest & self._is_counted
        self._tally.rows("changed_steps", self._labels, happened)
        if waiting:
            self._waiting = _Waiting(waiting, self._refused_likeliest.clone())

    def _count_waiting(self) -> None:
        """Count those rows of the last step that waited, and whose output has grown."""
        waiting, self._waiting = self._waiting, None
        if waiting is None:
            return
        grown = [(i, slot) for row, i, slot, length in waiting.rows if len(row.output) > length]
        if grown:
            indices, slots = (self._tensor(list(numbers)) for numbers in zip(*grown, strict=True))
            self._tally.rows("changed_steps", slots, waiting.refused_likeliest[indices])

    def _end_dead_rows(self, logits: torch.Tensor) -> None:
        dead = end_dead_rows(logits, self._constrained, self._ends)
        # One dead end for an answer, however many steps vLLM schedules after it.
        first = dead & ~self._dead
        self._dead = self._dead | dead
        slots = [row.slot_of_end for row in self._constrained_rows]
        if slots != self._ends_in:
            self._ends_in, numbers = slots, self._tensor(slots)
            self._end_labels, self._end_counts = numbers.clamp(min=0), numbers != _UNCOUNTED
        self._tally.rows("dead_ends", self._end_labels, first & self._end_counts)


def end_dead_rows(
    logits: torch.Tensor, indices: torch.Tensor, end_ids: torch.Tensor
) -> torch.Tensor:
    """Give rows with no token left their end token, in place. Returns which, bool [indices].

    If a grammar does not allow the end there, vLLM ends the request with an error, which is right.
    Without a grammar the answer ends.
    """
    dead = logits.index_select(0, indices).amax(dim=1) == float("-inf")
    # Any finite number does: it is the only one in its row, so its probability is 1. `where`
    # instead of a branch, which on a GPU would wait for `dead`.
    logits[indices, end_ids] = torch.where(dead, 0.0, logits[indices, end_ids])
    return dead
