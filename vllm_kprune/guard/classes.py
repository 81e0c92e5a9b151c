"""Group tokens into classes that act alike, for one table of allowed bytes.

A vocabulary has some 100,000 tokens, but only a few hundred ways to act on a state: allowed text,
refused text, control tokens, and one class for each combination of the bytes that finish a
character and the state in which the token ends. `guard/automaton.py` has an example.
"""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from vllm_kprune.errors import KPruneError
from vllm_kprune.guard.characters import CharacterTable
from vllm_kprune.guard.token_texts import only_of
from vllm_kprune.guard.tokens import (
    BYTE,
    CONTROL,
    PRESENT,
    SPECIAL,
    UNSPELLABLE,
    Fragments,
    Ints,
    TokenSpellings,
)
from vllm_kprune.guard.utf8 import REFUSED, ByteTable, walk

__all__ = [
    "HIDDEN",
    "MOST_NUMBERS",
    "SHOWN",
    "Classes",
    "States",
    "check_int16",
    "classify",
    "close_dead_ends",
    "number_tuples",
]

States: TypeAlias = npt.NDArray[np.int16]
MOST_NUMBERS = 1 << 15
_FEW_TUPLES = 1 << 24
# Five classes have a fixed meaning: never allowed, whole allowed text, control tokens that decoders
# skip, those that they show, and ASCII byte tokens. The others are for tokens with parts of
# characters.
_NEVER, _TEXT, HIDDEN, SHOWN, _ASCII_BYTE = range(5)
# The last column in `_after`: an index of -1 reads it.
_NO_HEAD = -1


@dataclass(frozen=True)
class _Columns:
    """`following` int16 [num_states, num_classes]: the next state or REFUSED. `fallback` int16
    [num_classes]: the state after a token of the class that is refused and comes all the same."""

    following: States
    fallback: States


@dataclass(frozen=True)
class Classes(_Columns):
    """The columns, `of_token` int16 [num_rows]: which column each token has; and the numbers of
    two states: of a broken run, and after a backslash (`guard/escapes.py`)."""

    of_token: States
    broken: int
    escaped: int | None = None


def classify(
    spellings: TokenSpellings,
    allowed: CharacterTable,
    table: ByteTable,
    num_rows: int,
    control_ids: Collection[int] = (),
) -> Classes:
    """The classes of ids 0 to `num_rows - 1`. Ids without a token are always refused.

    A byte-fallback vocabulary gets one more state than `table` has, the last one: a broken run.
    """
    # The table's last row is no state (it belongs to REFUSED), so this number is free.
    broken = len(table) - 1 if spellings.kind == "byte_fallback" else 0
    of_token, whole = _whole(spellings, allowed, len(table) - 1 + (broken > 0), broken)
    # Parts of a token count only if its whole characters are allowed.
    ids, index, parts = _parts(spellings, of_token != _NEVER, table, broken)
    of_token[ids] = len(whole.fallback) + index
    following = np.concatenate([whole.following, parts.following], axis=1)

    # After the parts, because a control token acts as control whatever it spells.
    control = spellings.flags & CONTROL != 0
    control[[token_id for token_id in control_ids if 0 <= token_id < len(control)]] = True
    is_shown = spellings.flags & (SPECIAL | BYTE) == 0
    of_token[control] = np.where(is_shown, SHOWN, HIDDEN)[control]
    # Logits may be wider than the tokenizer (rows without a token stay 0, _NEVER) or narrower.
    rows = np.zeros(num_rows, np.int16)
    width = min(num_rows, len(of_token))
    rows[:width] = of_token[:width]
    # Only classes in these rows: a token past the logits is never sampled and finishes nothing.
    close_dead_ends(following, np.unique(rows))
    return Classes(following, np.concatenate([whole.fallback, parts.fallback]), rows, broken)


def _whole(
    spellings: TokenSpellings, allowed: CharacterTable, num_states: int, broken: int
) -> tuple[States, _Columns]:
    """The class of each token by its whole characters only, and the first five columns."""
    good = only_of(allowed, spellings.code_points, spellings.code_starts)
    good &= spellings.flags & (PRESENT | UNSPELLABLE) == PRESENT
    of_token = np.where(good, _TEXT, _NEVER).astype(np.int16)
    # A class of their own, because a broken run would take an ASCII byte token along. Other byte
    # tokens are parts of characters, see `_parts`.
    of_token[good & (spellings.flags & BYTE != 0)] = _ASCII_BYTE

    following = np.full((num_states, 5), REFUSED, np.int16)
    if broken:
        # Text ends a broken run. A special token does not, because decoders may skip it.
        following[broken, [_TEXT, HIDDEN, SHOWN]] = 0, broken, 0
    following[0, [_TEXT, HIDDEN, SHOWN, _ASCII_BYTE]] = 0
    # In the order of the five classes.
    return of_token, _Columns(following, np.array([0, 0, broken, 0, broken], np.int16))


def _parts(
    spellings: TokenSpellings, good: npt.NDArray[np.bool_], table: ByteTable, broken: int
) -> tuple[Ints, Ints, _Columns]:
    """Ids of the tokens with parts of characters, the column of each, and the columns."""
    heads, tails = spellings.heads, spellings.tails
    ids = np.union1d(heads.token_ids, tails.token_ids)
    head = np.full(len(ids), _NO_HEAD)
    head[np.searchsorted(ids, heads.token_ids)] = heads.index
    end = np.zeros(len(ids), np.int64)
    # Where a tail leads from state 0: the state in which its token ends.
    begun = walk(table, np.zeros(1, np.int16), tails.parts, tails.lengths)[0]
    end[np.searchsorted(ids, tails.token_ids)] = begun[tails.index]
    is_byte = spellings.flags[ids] & BYTE != 0
    # A refused byte token makes a broken run; others lead where they would begin a text.
    fallback = np.where(is_byte, broken, np.maximum(end, 0))
    more = (np.diff(spellings.code_starts)[ids] > 0) | (spellings.tail_lengths[ids] > 0)
    # [ids, 4]: tokens with the same four numbers act alike.
    kinds, index = np.unique(
        np.stack([head, more, np.where(good[ids], end, REFUSED), fallback], axis=1),
        axis=0,
        return_inverse=True,
    )
    following = np.full((len(table) - 1 + (broken > 0), len(kinds)), REFUSED, np.int16)
    following[: len(table) - 1] = _after(kinds, table, heads)
    columns = _Columns(following, kinds[:, 3].astype(np.int16))
    return ids, index.reshape(-1).astype(np.int32), columns


def _after(kinds: npt.NDArray[np.int64], table: ByteTable, heads: Fragments) -> States:
    """From every state, over a head and what follows it: int16 [states, kinds]."""
    states = np.arange(len(table) - 1, dtype=np.int16)
    # A token without a head can only begin between characters.
    no_head = np.where(states == 0, 0, REFUSED)[:, None]
    # [states, heads + 1]; the last column is _NO_HEAD's.
    reached = np.concatenate([walk(table, states, heads.parts, heads.lengths), no_head], axis=1)
    head, more, end, _ = kinds.T
    # If more follows the head, the head must finish the character, and the token ends in `end`.
    after = np.where(more, np.where(reached[:, head] == 0, end, REFUSED), reached[:, head])
    return np.where(end == REFUSED, REFUSED, after).astype(np.int16)


def number_tuples(
    shape: tuple[int, ...], numbers: Sequence[npt.NDArray[np.integer[Any]]]
) -> tuple[States, tuple[npt.NDArray[np.int64], ...]]:
    """Number the distinct tuples of each token's numbers, which are below `shape`.

    Returns the number of each token's tuple, int16 [num_rows], and the tuples, one array for each
    place in them. Raises `KPruneError` if there are more than int16 can number.
    """
    tuples = np.zeros(len(numbers[0]), np.int64)
    for size, number in zip(shape, numbers, strict=True):
        tuples *= size
        tuples += number
    if math.prod(shape) > _FEW_TUPLES:
        distinct, of_token = np.unique(tuples, return_inverse=True)
    else:
        # The same, without sorting all tokens.
        used = np.zeros(math.prod(shape), np.bool_)
        used[tuples] = True
        distinct, of_token = np.flatnonzero(used), (np.cumsum(used) - 1)[tuples]
    check_int16(len(distinct))
    return of_token.astype(np.int16), np.unravel_index(distinct, shape)


def check_int16(number: int) -> None:
    """Raise `KPruneError` if states or classes are more than the tables can number."""
    if number > MOST_NUMBERS:
        raise KPruneError(
            f"the guard: its tables need {number:,} states or classes, more than {MOST_NUMBERS:,}; "
            "name fewer languages or scripts"
        )


def close_dead_ends(following: States, used: States) -> None:
    """Refuse what leads to a state from which no `used` class leads back to state 0.

    Searches backwards from state 0 until no more states are found.
    """
    living = np.zeros(len(following) + 1, np.bool_)  # the last is what REFUSED points at
    living[0] = True
    before = 0
    # The left side is read before the new count is assigned; `living` only grows, so this ends.
    while before != (before := int(living.sum())):
        # A state lives if some class leads from it to a living one.
        living[:-1] |= living[following[:, used]].any(axis=1)
    following[~living[following]] = REFUSED
