"""The guard on vLLM's V1 model runner: a row of the logits is a request of the persistent batch.

A row's state follows from its request's own token list. vLLM appends to that list and, when it
schedules ahead, replaces placeholders (-1) in it before processors run. A list that did not grow by
exactly one token since the last step (a resumed request, discarded tokens) is read again.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from vllm_kprune.guard.automaton import MOST_TOKENS_BACK, Automaton
from vllm_kprune.guard.mask import TokenMask
from vllm_kprune.serving.guard.requests import Guards
from vllm_kprune.serving.guard.steps import refuses
from vllm_kprune.serving.guard.tally import Tally

__all__ = ["GuardedRows"]


@dataclass(slots=True)
class _Row:
    """A guarded request. `output` is vLLM's own list, which grows; `end_id` ends the answer.

    `state` belongs to the moment when the output had `length` tokens and ended with `last`.
    """

    automaton: Automaton
    prompt: list[int]
    output: list[int]
    label_slot: int
    end_id: int
    constrained: bool
    state: int = 0
    length: int = -1
    last: int = -1

    def current_state(self) -> int:
        """The state before the token that is sampled next."""
        output, length = self.output, len(self.output)
        # `length` -1: a new row, whose prompt has not been read yet.
        if self.length < 0 or not self._still_holds():
            self.state = self.automaton.state_after([*self.prompt, *output])
        # Otherwise the list is as long as before, and the state still holds.
        elif length == self.length + 1:
            self.state = self.automaton.advance(self.state, output[-1])
        self.length, self.last = length, output[-1] if output else -1
        return self.state

    def _still_holds(self) -> bool:
        """Is this the list of the last step, with at most one more token?"""
        known = self.length
        if not known <= len(self.output) <= known + 1:
            return False
        # The length alone is not enough: tokens can be discarded and others sampled in their place.
        return not known or self.output[known - 1] == self.last


class GuardedRows:
    """The guarded requests of the batch, by row."""

    def __init__(self, guards: Guards, mask: TokenMask, tally: Tally, device: torch.device) -> None:
        self._guards = guards
        self._mask = mask
        guards.when_given_up(mask.forget)
        self._tally = tally
        self._device = device
        self._rows: dict[int, _Row] = {}
        self._changed()

    def update(self, batch: Any) -> None:
        """Follow a `BatchUpdate`, in its documented order: removed, added, moved."""
        if batch is None:
            return
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
        slot = self._tally.slot(guard.automaton.policy.label)
        if not output:  # a request that was preempted comes back with its tokens
            self._tally.request(slot)
        return _Row(
            automaton=guard.automaton,
            prompt=(prompt or [])[-MOST_TOKENS_BACK:],
            # The list itself, not a copy: vLLM appends the sampled tokens to it.
            output=output,
            label_slot=slot,
            end_id=guard.end_id,
            constrained=guard.constrained,
        )

    def _automata(self) -> Iterable[Automaton]:
        return (row.automaton for row in self._rows.values())

    def _changed(self) -> None:
        """Put on the device what each step needs to know, once for each change of the batch.

        Every row up to the last guarded one has a label slot and a flag; the flag of an unguarded
        row is never set.
        """
        constrained = {i: row for i, row in self._rows.items() if row.constrained}
        everything = range(1 + max(self._rows, default=-1))
        self._labels = self._tensor(
            [self._rows[i].label_slot if i in self._rows else 0 for i in everything]
        )
        self._refused_likeliest = self._tensor([0 for _ in everything]).bool()
        self._constrained = self._tensor(list(constrained))
        # Shapes: `_labels` and `_refused_likeliest` [last guarded row + 1], the other three
        # [constrained].
        self._constrained_labels = self._labels[self._constrained]
        self._ends = self._tensor([row.end_id for row in constrained.values()])

    def _tensor(self, numbers: list[int]) -> torch.Tensor:
        return torch.tensor(numbers, dtype=torch.int64, device=self._device)

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """Refuse tokens, in place; `logits` float32 [rows of the batch, vocabulary]."""
        if not self._rows:
            return logits
        groups: dict[tuple[Automaton, int], list[int]] = {}
        for index, row in self._rows.items():
            # Rows in the same state share one mask. Most rows are in state 0, between characters.
            groups.setdefault((row.automaton, row.current_state()), []).append(index)
        self._mask.apply_(logits, groups, self._refused_likeliest)
        self._tally.rows("changed_steps", self._labels, self._refused_likeliest)
        if len(self._ends):
            dead = end_dead_rows(logits, self._constrained, self._ends)
            self._tally.rows("dead_ends", self._constrained_labels, dead)
        return logits

    def withdraw(self, logits: torch.Tensor, token_ids: Sequence[int]) -> None:
        """After `apply`: refuse tokens again that were forced inside of characters."""
        for index, row in self._rows.items():
            state = row.current_state()
            # Between characters the end of the answer is allowed, and anything may be forced.
            if refuses(row.automaton, state, row.end_id):
                for token_id in token_ids:
                    if refuses(row.automaton, state, token_id):
                        logits[index, token_id] = -torch.inf


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
