"""One automaton for a model that reasons first and answers then, with a policy for each phase.

The states of three phases are put into one table, so whoever runs an automaton knows nothing of
phases:

    BEFORE     nothing but white space and control tokens so far, and the prompt is not inside
               reasoning. Guarded as the answer. The start token leads to REASONING, everything else
               to ANSWER.
    REASONING  the end token leads to ANSWER. Between characters, it is never refused.
    ANSWER     stays: a second start token is an ordinary control token, and what follows it is
               guarded as before.

A phase without a policy is free: every id with a token is allowed in it. Its text may be broken
UTF-8, and the next phase begins between characters all the same. With byte fallback, a run of byte
tokens goes on past a token that the decoder skips. If a free phase leaves such a run broken, the
next phase begins in `broken`, where byte tokens are refused until another token has ended the run.

A prompt begins in REASONING if its last start token comes after its last end token. Some models
have no start token, because they always reason: without one, a prompt begins in REASONING unless it
has an end token.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from vllm_kprune.errors import KPruneError
from vllm_kprune.guard.automaton import Automaton, build_automaton
from vllm_kprune.guard.characters import NUM_CODE_POINTS, CharacterTable
from vllm_kprune.guard.classes import States, check_int16, classify, number_tuples
from vllm_kprune.guard.ending import Ending
from vllm_kprune.guard.policy import GuardPolicy
from vllm_kprune.guard.tokens import CONTROL, PRESENT, TokenSpellings
from vllm_kprune.guard.utf8 import REFUSED, ByteTable, byte_table

__all__ = ["PhasedReader", "ReasoningTokens", "build_phases"]

# What a token does to the phase.
_TEXT, _STAYS, _START, _END = range(4)
_NUM_ROLES = 4

Roles: TypeAlias = npt.NDArray[np.int8]


@dataclass(frozen=True)
class ReasoningTokens:
    """The ids of the tokens between which a model reasons. `start` None: it has only an end."""

    start: int | None
    end: int


@dataclass(frozen=True)
class _Part:
    """The tables of one phase, as in `Automaton`."""

    of_token: States
    following: States
    fallback: States
    broken: int
    reader: Ending


def build_phases(
    spellings: TokenSpellings,
    answer: GuardPolicy | None,
    reasoning: GuardPolicy | None,
    tokens: ReasoningTokens,
    num_rows: int | None = None,
    control_ids: Collection[int] = (),
) -> Automaton:
    """An automaton that guards the answer and the reasoning, each by its own policy or not at all.

    At least one policy must be given. The automaton's `policy` is the answer's, or the reasoning's
    if the answer is free. Other arguments are as in `build_automaton`. A token that is refused and
    comes all the same leads to ANSWER.

    Raises `KPruneError` if a policy leaves no token, or the tokens are none of this vocabulary.
    """
    policy = answer or reasoning
    if policy is None:
        raise KPruneError("got no policy, expected one for the answer, the reasoning, or both")
    num_rows = spellings.num_tokens if num_rows is None else num_rows
    marks = {token for token in (tokens.start, tokens.end) if token is not None}
    if tokens.start == tokens.end or not all(
        token < num_rows and spellings.flags_of(token) & PRESENT for token in marks
    ):
        raise KPruneError(
            f"reasoning: got the tokens {tokens.start} and {tokens.end} for its start and end, "
            f"expected two different ids of the vocabulary, below {num_rows:,}"
        )
    controls = {*control_ids, *marks}
    first, second = (
        _guarded(build_automaton(spellings, part, num_rows, controls))
        if part
        else _free(spellings, num_rows, controls)
        for part in (answer, reasoning)
    )
    roles = _roles(spellings, tokens, num_rows, controls)
    return _product(first, second, roles, tokens, policy, reasoning)


def _guarded(automaton: Automaton) -> _Part:
    assert isinstance(automaton._reader, Ending)
    return _Part(
        automaton.token_class.numpy(),
        automaton.class_next.numpy(),
        automaton.class_fallback.numpy(),
        automaton.broken,
        automaton._reader,
    )


def _free(spellings: TokenSpellings, num_rows: int, controls: Collection[int]) -> _Part:
    """Every token is allowed. With byte fallback, it still matters whether a run is broken."""
    if spellings.kind == "byte_level":
        present = np.zeros(num_rows, np.int16)
        width = min(num_rows, spellings.num_tokens)
        present[:width] = spellings.flags[:width] & PRESENT != 0
        reader = Ending(spellings, np.zeros((2, 256), np.int16), 0, np.ones(1, np.bool_))
        return _Part(present, np.array([[REFUSED, 0]], np.int16), np.zeros(2, np.int16), 0, reader)
    everything, table = _everything()
    classes = classify(spellings, everything, table, num_rows, controls)
    following = np.where(classes.following < 0, classes.fallback, classes.following)
    # The first class is that of rows without a token: no other token is refused by this table.
    following[:, 0] = REFUSED
    reader = Ending(spellings, table, classes.broken, np.ones(len(following), np.bool_))
    return _Part(classes.of_token, following, classes.fallback, classes.broken, reader)


@lru_cache(maxsize=1)
def _everything() -> tuple[CharacterTable, ByteTable]:
    """All characters, and their bytes."""
    everything = np.ones(NUM_CODE_POINTS, np.bool_)
    everything[0xD800:0xE000] = False
    return everything, byte_table(everything)


def _roles(
    spellings: TokenSpellings, tokens: ReasoningTokens, num_rows: int, controls: Collection[int]
) -> Roles:
    """What each token does to the phase, int8 [num_rows]."""
    roles = np.full(num_rows, _TEXT, np.int8)
    stays = spellings.white | (spellings.flags & CONTROL != 0)
    stays[[token for token in controls if 0 <= token < len(stays)]] = True
    width = min(num_rows, len(stays))
    roles[:width][stays[:width]] = _STAYS
    if tokens.start is not None:
        roles[tokens.start] = _START
    roles[tokens.end] = _END
    return roles


def _product(
    answer: _Part,
    reasoning: _Part,
    roles: Roles,
    tokens: ReasoningTokens,
    policy: GuardPolicy,
    reasoning_policy: GuardPolicy | None,
) -> Automaton:
    of_token, (of_answer, of_reasoning, role) = number_tuples(
        (len(answer.fallback), len(reasoning.fallback), _NUM_ROLES),
        (answer.of_token, reasoning.of_token, roles),
    )
    stay, think = answer.following[:, of_answer], reasoning.following[:, of_reasoning]
    # Only a state in which the start token is allowed has a copy in BEFORE: from all others, what
    # comes next is text, and leads to ANSWER.
    doors = np.zeros(len(stay), np.bool_)
    if tokens.start is not None:
        doors = stay[:, of_token[tokens.start]] >= 0
    before = np.arange(len(stay))
    before[doors] = len(stay) + np.arange(doors.sum())
    first = len(stay) + int(doors.sum())
    check_int16(first + len(think))

    wait = stay[doors]
    staying = (wait >= 0) & (role == _STAYS)
    wait = np.where(staying, before[wait], wait)
    entered = _crossed(stay[doors], answer.broken, first, first + reasoning.broken)
    wait = np.where(role == _START, entered, wait)
    left = _crossed(think, reasoning.broken, 0, answer.broken)
    think = np.where(role == _END, left, np.where(think >= 0, think + first, REFUSED))
    return Automaton(
        policy=policy,
        token_class=torch.from_numpy(of_token),
        class_next=torch.from_numpy(np.concatenate([stay, wait, think]).astype(np.int16)),
        class_fallback=torch.from_numpy(answer.fallback[of_answer]),
        broken=answer.broken,
        _reader=PhasedReader(answer.reader, reasoning.reader, tokens, roles, before, first),
        first_reasoning_state=first,
        reasoning=reasoning_policy,
    )


def _crossed(following: States, broken: int, whole_state: int, broken_state: int) -> States:
    """Where a control token leads that also ends the phase: a broken run goes on (see above).

    Byte-level, `broken` is 0, and so is the next phase's.
    """
    reached = np.where(following == broken, broken_state, whole_state)
    return np.where(following < 0, REFUSED, reached)


@dataclass(frozen=True, eq=False)
class PhasedReader:
    """Finds the phase, and then the state in it. `before[s]` is the state s in BEFORE."""

    answer: Ending
    reasoning: Ending
    tokens: ReasoningTokens
    roles: Roles
    before: npt.NDArray[np.int64]
    first: int

    @property
    def nbytes(self) -> int:
        tables = self.answer.nbytes + self.reasoning.nbytes
        return tables + self.roles.nbytes + self.before.nbytes

    def state_after(self, token_ids: Sequence[int], prompt_length: int | None = None) -> int:
        length = len(token_ids) if prompt_length is None else prompt_length
        role, begin = self._phase(token_ids, length)
        if role == _START:
            return self.first + self.reasoning.state_from(token_ids, begin)
        state = self.answer.state_from(token_ids, begin)
        return int(self.before[state]) if role == _STAYS else state

    def _phase(self, token_ids: Sequence[int], length: int) -> tuple[int, int]:
        """What led to the phase at the end of a text, and where in the text it begins.

        _STAYS if it is BEFORE, _START if it is REASONING. `length` is the prompt's.
        """
        if (begin := self._open_since(token_ids[:length])) is None:
            # The first token that is not white space decides.
            role, begin = self._leave_before(token_ids, length)
            if role != _START:
                return role, 0
            length = begin
        try:
            return _END, token_ids.index(self.tokens.end, length) + 1
        except ValueError:
            return _START, begin

    def _open_since(self, prompt: Sequence[int]) -> int | None:
        """Where the reasoning begins that the prompt ends in; None if it ends in none."""
        end = _last(prompt, self.tokens.end)
        if self.tokens.start is None:
            return 0 if end < 0 else None
        start = _last(prompt, self.tokens.start)
        return start + 1 if start > end else None

    def _leave_before(self, token_ids: Sequence[int], length: int) -> tuple[int, int]:
        """The role of the token that ended BEFORE, and its position + 1; _STAYS if none did."""
        for n in range(length, len(token_ids)):
            token_id = token_ids[n]
            role = self.roles[token_id] if 0 <= token_id < len(self.roles) else _TEXT
            if role != _STAYS:
                return int(role), n + 1
        return _STAYS, 0


def _last(token_ids: Sequence[int], token_id: int) -> int:
    """The last position of an id; -1 if there is none."""
    # Reversed, because `index` searches from the front, and much faster than a loop.
    try:
        return len(token_ids) - 1 - token_ids[::-1].index(token_id)
    except ValueError:
        return -1
