"""The state after a text that was not written under the guard: by the bytes at its end.

Only the last few tokens matter, because a character begins in state 0. The hard part is which
bytes are decoded together with what follows, and that depends on the decoder: see
`guard/decoder.py`. Phases of reasoning and answer are not its concern (`guard/phases.py`).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vllm_kprune.guard.tokens import BYTE, CONTROL, PRESENT, SPECIAL, TokenSpellings
from vllm_kprune.guard.utf8 import ByteTable
from vllm_kprune.tokenizer.utf8 import LONGEST_CHARACTER, unfinished

__all__ = ["MOST_TOKENS_BACK", "Ending"]

# Tokens at the end of a text that are looked at. Without a bound, a long run of byte tokens would
# be read to its beginning.
MOST_TOKENS_BACK = 4096


@dataclass(frozen=True, eq=False)
class Ending:
    """Reads the end of a text for one set of tables.

    `table` has the states of unfinished characters; `alive` bool [num_states] says which of them
    some token leaves. `broken` is the state of a character that cannot become an allowed one, and
    `escaped`, if there is one, that after a backslash (`guard/escapes.py`).
    """

    spellings: TokenSpellings
    table: ByteTable
    broken: int
    alive: npt.NDArray[np.bool_]
    escaped: int | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of the tables."""
        return self.table.nbytes + self.alive.nbytes

    def state_after(self, token_ids: Sequence[int], prompt_length: int | None = None) -> int:
        """The state after a text; where the prompt in it ends makes no difference."""
        return self.state_from(token_ids, 0)

    def state_from(self, token_ids: Sequence[int], begin: int) -> int:
        """The state after a text in which the tokens before `begin` are of another phase.

        A run of byte tokens can go on from there, but a backslash does not count.
        """
        run, is_sound = self._last_bytes(token_ids)
        state = 0
        # An unfinished character begins in state 0, so nothing before it matters.
        for byte in unfinished(run):
            state = int(self.table[state, byte])
        # The byte table knows allowed characters, not the vocabulary, so this may be a state that
        # no token leaves. REFUSED must not be an index: -1 would read the last state.
        if not (is_sound and state >= 0 and self.alive[state]):
            return self.broken
        if state == 0 and self.escaped is not None and self.alive[self.escaped]:
            return self.escaped if _ends_escaped(self.spellings, token_ids[begin:]) else 0
        return state

    def _last_bytes(self, token_ids: Sequence[int]) -> tuple[bytes, bool]:
        """The bytes at the end of a text that are decoded together with what follows.

        Byte-level: the last few bytes. Byte-fallback: the last run of byte tokens. Also returns
        False if the run is broken. A special token inside a character breaks it too: whether the
        decoder skips the token depends on the request.
        """
        is_fallback = self.spellings.kind == "byte_fallback"
        parts = [b""]  # from the last part backwards; a special token begins a new one
        for token_id in reversed(token_ids[-MOST_TOKENS_BACK:]):
            flags = self.spellings.flags_of(token_id)
            if is_fallback and flags & SPECIAL:
                parts.append(b"")
            elif not flags & PRESENT or flags & CONTROL or (is_fallback and not flags & BYTE):
                # The run ends: an id without a token, a control token, or, with fallback, any that
                # is not a byte token.
                break
            else:
                parts[-1] = self.spellings.bytes_of(token_id) + parts[-1]
                if not is_fallback and len(parts[-1]) >= LONGEST_CHARACTER:
                    break
        last, *earlier = parts
        # What the decoder has finished must be UTF-8. Parts before a special token have no
        # unfinished end to be forgiven: the token has cut it off.
        whole = last[: len(last) - len(unfinished(last))]
        return last, not is_fallback or all(map(_is_utf8, (whole, *earlier)))


def _ends_escaped(spellings: TokenSpellings, token_ids: Sequence[int]) -> bool:
    """Does a text end in an odd number of backslashes?"""
    count = 0
    for token_id in reversed(token_ids[-MOST_TOKENS_BACK:]):
        flags = spellings.flags_of(token_id)
        if flags & SPECIAL:
            continue
        if not flags & PRESENT or flags & CONTROL:
            break
        text = spellings.bytes_of(token_id)
        count += len(text) - len(text.rstrip(b"\\"))
        if text.strip(b"\\"):
            break
    return count % 2 == 1


def _is_utf8(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True
