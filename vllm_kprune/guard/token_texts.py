r"""Facts about the texts of tokens that hold for every policy: white space, and backslashes."""

from typing import TypeAlias

import numpy as np
import numpy.typing as npt

__all__ = ["BROKEN_STEP", "BackslashSteps", "backslash_steps", "only_of"]

BROKEN_STEP = -1
_BACKSLASH, _U = ord("\\"), ord("u")
# int8 [num_tokens, 2]: from an even and from an odd number of backslashes, is the number odd (1) or
# even (0) after the token? BROKEN_STEP if the token writes an escaped u.
BackslashSteps: TypeAlias = npt.NDArray[np.int8]


def only_of(
    members: npt.NDArray[np.bool_],
    code_points: npt.NDArray[np.uint32],
    code_starts: npt.NDArray[np.int32],
) -> npt.NDArray[np.bool_]:
    """Which tokens have no whole character outside of a table, bool [num_tokens]."""
    # others[n]: other characters among the first n of all tokens. A token has none if the count is
    # the same at its beginning and its end.
    others = np.zeros(len(code_points) + 1, np.int32)
    np.cumsum(~members[code_points], out=others[1:])
    return np.equal(others[code_starts[1:]], others[code_starts[:-1]])


def backslash_steps(
    spelled: npt.NDArray[np.uint8], starts: npt.NDArray[np.int32]
) -> BackslashSteps:
    """What each token does to the number of backslashes before it."""
    steps = np.zeros((len(starts) - 1, 2), np.int8)
    lengths = np.diff(starts)
    steps[lengths == 0] = 0, 1
    begun = np.flatnonzero(lengths)
    steps[begun[spelled[starts[begun]] == _U], 1] = BROKEN_STEP
    places = np.flatnonzero(spelled == _BACKSLASH)
    for token_id in np.unique(np.searchsorted(starts, places, side="right") - 1):
        text = spelled[starts[token_id] : starts[token_id + 1]].tobytes()
        steps[token_id] = _read(text, 0), _read(text, 1)
    return steps


def _read(text: bytes, odd: int) -> int:
    for byte in text:
        if odd and byte == _U:
            return BROKEN_STEP
        odd = int(not odd and byte == _BACKSLASH)
    return odd
