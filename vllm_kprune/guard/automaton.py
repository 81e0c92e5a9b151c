"""Which tokens may come next, and the state after each: a policy applied to a tokenizer.

A state is an unfinished character (`guard/utf8.py`); state 0 is between characters. Tokens that act
alike in every state share a class, so the table is states x classes (a few hundred each) and not
states x tokens. The guarantee: whatever is sampled from the allowed tokens is UTF-8 of allowed
characters, cut off at most inside the last one.

An example: "é" is C3 A9 in UTF-8, and a policy allows "a" and "é", but not "ã" (C3 A3).

    token    next state from 0    from s, after C3
    a        0                    refused: C3 would be broken
    C3       s                    refused
    A9       refused              0: "é" is finished
    A9 61    refused              0: "é", then "a"
    A9 C3    refused              s: "é", then the beginning of another character
    A3       refused              refused: "ã"
    <eos>    0                    refused

- Between characters, control tokens (`guard/controls.py`) are always allowed, whatever the policy.
  Inside a character, only tokens that continue it are: a control token would leave a broken
  character behind.
- A byte-fallback decoder turns a whole run of byte tokens into U+FFFD if one of them is wrong. A
  prompt can end in such a run, and no token can repair it: the state `broken` refuses byte tokens
  until another token has ended the run. A special token does not end it, because decoders may
  skip it. Byte-level text recovers by itself: there, `broken` is state 0.
- With `escapes: json`, one more state refuses a u after a backslash: see `guard/escapes.py`.
- No dead ends: a state is not entered if the vocabulary has no way to finish the character.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from typing import Protocol

import numpy as np
import torch

from vllm_kprune.errors import KPruneError
from vllm_kprune.guard.characters import allowed_characters
from vllm_kprune.guard.classes import States, classify
from vllm_kprune.guard.ending import MOST_TOKENS_BACK, Ending
from vllm_kprune.guard.escapes import add_escapes
from vllm_kprune.guard.policy import GuardPolicy
from vllm_kprune.guard.tokens import TokenSpellings
from vllm_kprune.guard.utf8 import REFUSED, ByteTable, byte_table

__all__ = ["MOST_TOKENS_BACK", "REFUSED", "Automaton", "Reader", "build_automaton"]


class Reader(Protocol):
    """Finds the state after a text that was not written under the guard."""

    @property
    def nbytes(self) -> int:
        """Bytes of its tables."""

    def state_after(self, token_ids: Sequence[int], prompt_length: int | None = None) -> int:
        """See `Automaton.state_after`."""


@dataclass(frozen=True, eq=False)
class Automaton:
    """A policy's tables for one tokenizer and width of logits.

    `token_class` int16 [num_rows]: the class of each token. `class_next` int16 [num_states,
    num_classes]: the next state, or REFUSED. `class_fallback` int16 [num_classes]: the state after
    a token that is refused and comes all the same, in a prompt for instance. `broken`: see above.
    States from `first_reasoning_state` on belong to a model's reasoning, the others to its answer
    (`guard/phases.py`); if it is None, there is no reasoning. `reasoning` is the policy there; None
    if it is unguarded. Automatons compare by identity.
    """

    policy: GuardPolicy
    token_class: torch.Tensor
    class_next: torch.Tensor
    class_fallback: torch.Tensor
    broken: int
    _reader: Reader = field(repr=False)
    first_reasoning_state: int | None = None
    reasoning: GuardPolicy | None = None

    @property
    def label(self) -> str:
        """What the rows of the answer, and requests, are counted under."""
        return self.policy.label

    @property
    def reasoning_label(self) -> str | None:
        """What the rows of the reasoning are counted under; None if it is unguarded."""
        return self.reasoning.label if self.reasoning else None

    @property
    def num_states(self) -> int:
        """States 0 to `num_states - 1`."""
        return self.class_next.shape[0]

    @property
    def num_rows(self) -> int:
        """Width of the logits."""
        return self.token_class.shape[0]

    @property
    def num_bytes(self) -> int:
        """Bytes of the tables. A mask needs memory of its own (`guard/mask.py`)."""
        return self.token_class.nbytes + self.class_next.nbytes + self._reader.nbytes

    def refused(self, state: int) -> torch.Tensor:
        """Which tokens must not come next: bool [num_rows]."""
        return torch.from_numpy((self._next[state] < 0)[self._classes])

    def next_states(self, states: torch.Tensor, token_ids: torch.Tensor) -> torch.Tensor:
        """`advance` for many tokens at once, on the tables' device; ids below `num_rows`."""
        # PyTorch cannot index with int16.
        classes = self.token_class[token_ids].int()
        following = self.class_next[states, classes]
        # The only negative state is REFUSED.
        return torch.where(following < 0, self.class_fallback[classes], following)

    def advance(self, state: int, token_id: int) -> int:
        """The state after one more token.

        A token that was refused leads where it would at the beginning of a text. An id without a
        token leads to state 0.
        """
        if not 0 <= token_id < self.num_rows:
            return 0
        number = self._classes[token_id]
        following = int(self._next[state, number])
        return following if following >= 0 else int(self._fallback[number])

    def state_after(self, token_ids: Sequence[int], prompt_length: int | None = None) -> int:
        """The state after a text that may have been written without the guard, such as a prompt.

        An unfinished character that cannot become an allowed one leads to `broken`. If the text
        ends with a part of the answer (a request that was preempted), `prompt_length` says how many
        tokens are the prompt; by default, all are. Where there is reasoning, give the whole text.
        """
        return self._reader.state_after(token_ids, prompt_length)

    # NumPy needs tables on the CPU: a copy with tables on a GPU is for `next_states` alone.
    @cached_property
    def _classes(self) -> States:
        return self.token_class.numpy()

    @cached_property
    def _next(self) -> States:
        return self.class_next.numpy()

    @cached_property
    def _fallback(self) -> States:
        return self.class_fallback.numpy()


@lru_cache(maxsize=16)
def _byte_table(policy: GuardPolicy) -> ByteTable:
    table = byte_table(allowed_characters(policy))
    # All automatons of the policy share it.
    table.flags.writeable = False
    return table


def build_automaton(
    spellings: TokenSpellings,
    policy: GuardPolicy,
    num_rows: int | None = None,
    control_ids: Collection[int] = (),
) -> Automaton:
    """Apply a policy to a tokenizer: which tokens may come next, in every state.

    `spellings` come from `load_spellings`. `num_rows` is the width of the model's logits, by
    default one row for each id of the tokenizer; rows without a token are always refused. A policy
    whose `escapes` are "auto" is built as with "off": only a request shows that its answer is JSON.
    `control_ids` are control tokens besides those that the tokenizer's folder shows
    (`guard/controls.py`): the model's EOS, for instance, or those of a parser.

    Raises `KPruneError` if the policy leaves no token at all.

    >>> korean = GuardPolicy(languages=("ko",))
    >>> automaton = build_automaton(load_spellings(model), korean)
    >>> state = automaton.advance(0, byte_id["<0xED>"])  # the first byte of many Hangul syllables
    >>> refused = automaton.refused(state)  # bool [num_rows]
    >>> bool(refused[byte_id["<0x95>"]]), bool(refused[byte_id["<0x41>"]])  # 0x95 continues, A not
    (False, True)
    """
    num_rows = spellings.num_tokens if num_rows is None else num_rows
    allowed = allowed_characters(policy)
    table = _byte_table(replace(policy, escapes="off"))
    classes = classify(spellings, allowed, table, num_rows, control_ids)
    if policy.escapes == "json":
        classes = add_escapes(classes, spellings)
    # Every character begins in state 0: if nothing may come there, nothing can be written.
    if not (classes.following[0, classes.of_token] >= 0).any():
        raise KPruneError(
            f"the guard for {policy.label} leaves none of the vocabulary's {num_rows:,} tokens; "
            "name other languages or scripts"
        )
    return Automaton(
        policy=policy,
        token_class=torch.from_numpy(classes.of_token),
        class_next=torch.from_numpy(classes.following),
        class_fallback=torch.from_numpy(classes.fallback),
        broken=classes.broken,
        _reader=Ending(
            spellings,
            table,
            classes.broken,
            alive=np.any(classes.following >= 0, axis=1),
            escaped=classes.escaped,
        ),
    )
