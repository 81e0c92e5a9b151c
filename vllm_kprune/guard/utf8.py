"""A deterministic automaton over bytes: the UTF-8 of allowed characters, and nothing else.

State 0 is between characters. The other states are unfinished characters. Those with the same
completions share a state, so Hangul's 11,172 syllables need only a few. A table of allowed
characters is read in blocks of 64, because the last byte of a character chooses one of 64.
"""

from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from vllm_kprune.guard.characters import NUM_CODE_POINTS, CharacterTable

__all__ = ["REFUSED", "ByteTable", "byte_table", "walk"]

REFUSED = -1
# int16 [num_states + 1, 256]. The last row is all REFUSED. The index REFUSED (-1) leads there, so
# what was refused once stays refused.
ByteTable: TypeAlias = npt.NDArray[np.int16]

_BLOCK = 64
# A row is what follows one lead byte E0 to EF: 64 * 64 code points. All of Unicode has 272.
_NUM_ROWS = NUM_CODE_POINTS // _BLOCK // _BLOCK


def byte_table(allowed: CharacterTable) -> ByteTable:
    """The state after each byte, `table[state, byte]`; REFUSED if no allowed character fits.

    "é" is C3 A9 and "è" is C3 A8. If only these and "a" are allowed, state 1 is "after C3":

    >>> allowed = np.zeros(NUM_CODE_POINTS, np.bool_)
    >>> allowed[[ord(character) for character in "aéè"]] = True
    >>> table = byte_table(allowed)
    >>> [int(table[0, byte]) for byte in b"ab\\xc3"]
    [0, -1, 1]
    >>> [int(table[1, byte]) for byte in b"\\xa8\\xa9\\xaaa"]
    [0, 0, -1, -1]

    Surrogates must not be in `allowed`. Overlong forms are refused: ASCII in two bytes, the first
    0x800 code points in three, the first 0x10000 in four.
    """
    # From the last byte of a character to its first. Each step cuts the code points into blocks of
    # 64, and gives every distinct block a state.

    # [17408, 64]: the row is the code point // 64, the column its last byte - 0x80.
    last = np.where(allowed.reshape(-1, _BLOCK), 0, REFUSED).astype(np.int16)
    # ASCII is one byte, so its two blocks have no two-byte form.
    last[: 0x80 // _BLOCK] = REFUSED
    one_left, rows_one = _merge(last, 1)
    # [272, 64]: the code point // 4096, and its last byte but one.
    middle = one_left.reshape(_NUM_ROWS, _BLOCK).copy()
    middle[0, : 0x800 // _BLOCK] = REFUSED
    two_left, rows_two = _merge(middle, 1 + len(rows_one))
    # [5, 64]: lead bytes F0 to F4; of F4, Unicode uses a quarter.
    first = np.full((5, _BLOCK), REFUSED, np.int16)
    first.flat[:_NUM_ROWS] = two_left
    # The first 16 rows are the code points below 0x10000, which have three bytes.
    first[0, :16] = REFUSED
    three_left, rows_three = _merge(first, 1 + len(rows_one) + len(rows_two))

    # Trap: states were numbered in this order, so row n of `pending` is state n + 1.
    pending = np.concatenate([rows_one, rows_two, rows_three])
    table = np.full((1 + len(pending) + 1, 256), REFUSED, np.int16)
    table[1:-1, 0x80:0xC0] = pending
    table[0, :0x80] = np.where(allowed[:0x80], 0, REFUSED)
    # C0 and C1 could only begin overlong ASCII, hence from C2 on.
    table[0, 0xC2:0xE0] = one_left[2:32]
    table[0, 0xE0:0xF0] = two_left[:16]
    table[0, 0xF0:0xF5] = three_left
    return table


def _merge(
    rows: npt.NDArray[np.int16], first_state: int
) -> tuple[npt.NDArray[np.int16], npt.NDArray[np.int16]]:
    """Number distinct rows as states from `first_state` on; rows that refuse all become REFUSED.

    Returns the state of each row [n], and the rows of the states, in the order of their first use.
    """
    content, row_bytes = rows.tobytes(), rows.itemsize * rows.shape[1]
    # Without this entry, a block with no allowed character would be a state without a way out.
    states = {np.full_like(rows[0], REFUSED).tobytes(): REFUSED}
    firsts: list[int] = []
    reached = np.empty(len(rows), np.int16)
    for n in range(len(rows)):
        row = content[n * row_bytes : (n + 1) * row_bytes]
        if row not in states:
            states[row] = first_state + len(firsts)
            firsts.append(n)
        reached[n] = states[row]
    return reached, rows[firsts]


def walk(
    table: ByteTable,
    states: npt.NDArray[np.int16],
    parts: npt.NDArray[np.uint8],
    lengths: npt.NDArray[np.int32],
) -> npt.NDArray[np.int16]:
    """From each of `states` [s] over each of `parts` [n, bytes]: the states there, int16 [s, n]."""
    # A view [s, n]; `where` makes new arrays, so nothing is written to it.
    reached = np.broadcast_to(states[:, None], (len(states), len(lengths)))
    for k in range(parts.shape[1]):
        # Parts are padded: past its length, a part stays in the state that it has reached.
        reached = np.where(lengths > k, table[reached, parts[:, k]], reached)
    return reached
