"""Which tokens may come next, and the state after each: a policy applied to a tokenizer.

A state is an unfinished character (`guard/utf8.py`); state 0 is between characters. Tokens that
behave alike in every state form one class, so the table is states x classes (some hundred each)
and not states x tokens. The guarantee: whatever is sampled from the allowed tokens is UTF-8 of
allowed characters, cut off at most inside the last one.

- Between characters, special tokens and the given stop tokens are always allowed. Inside a
  character only tokens that continue it are, since decoding drops a special token and leaves a
  broken character behind.
- A byte-fallback decoder turns a whole run of byte tokens into U+FFFD if one of them is wrong. A
  prompt can end in such a run, which nothing can mend: state `broken` refuses byte tokens until
  another token has ended the run. Byte-level text mends itself: there `broken` is state 0.
- No dead ends: a state from which the vocabulary has no way to finish the character is not entered.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch

from vllm_kprune.errors import KPruneError
from vllm_kprune.guard.characters import allowed_characters
from vllm_kprune.guard.classes import States, classify
from vllm_kprune.guard.policy import GuardPolicy
from vllm_kprune.guard.tokens import BYTE, PRESENT, SPECIAL, TokenSpellings
from vllm_kprune.guard.utf8 import REFUSED, ByteTable, byte_table
from vllm_kprune.tokenizer.utf8 import LONGEST_CHARACTER, unfinished

__all__ = ["MOST_TOKENS_BACK", "REFUSED", "Automaton", "build_automaton"]

# A prompt's end is looked at as far as this: empty and special tokens do not lead further back.
MOST_TOKENS_BACK = 4096


@dataclass(frozen=True, eq=False)
class Automaton:
    """A policy's tables for one tokenizer and width of logits.

    `token_class` int16 [num_rows]; `class_next` int16 [num_states, num_classes], the next state or
    REFUSED; `class_fallback` int16 [num_classes], the state after a token that was refused and came
    all the same (in a prompt, say). `broken`: see above. Compares by identity.
    """

    policy: GuardPolicy
    token_class: torch.Tensor
    class_next: torch.Tensor
    class_fallback: torch.Tensor
    broken: int
    _spellings: TokenSpellings = field(repr=False)
    _bytes: ByteTable = field(repr=False)

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
        """Memory of the tables in bytes; a mask adds its own (`guard/mask.py`)."""
        return self.token_class.nbytes + self.class_next.nbytes + self._bytes.nbytes

    def refused(self, state: int) -> torch.Tensor:
        """Which tokens must not come next: bool [num_rows]."""
        return torch.from_numpy((self._next[state] < 0)[self._classes])

    def next_states(self, states: torch.Tensor, token_ids: torch.Tensor) -> torch.Tensor:
        """`advance` for many at once, on these tables' device; ids must be below `num_rows`."""
        classes = self.token_class[token_ids].int()
        following = self.class_next[states, classes]
        return torch.where(following < 0, self.class_fallback[classes], following)

    def advance(self, state: int, token_id: int) -> int:
        """The state after one more token.

        A token that was not allowed leads where it would at the beginning of a text; an id without
        a token leads to state 0.
        """
        if not 0 <= token_id < self.num_rows:
            return 0
        number = self._classes[token_id]
        following = int(self._next[state, number])
        return following if following >= 0 else int(self._fallback[number])

    def state_after(self, token_ids: Sequence[int]) -> int:
        """The state after a text, such as a prompt, that may have been written without the guard.

        Only the last few tokens matter. What was begun and cannot become an allowed character
        leads to `broken`.
        """
        run, is_sound = self._last_bytes(token_ids)
        state = 0
        for byte in unfinished(run):
            state = int(self._bytes[state, byte])
        is_finishable = state >= 0 and bool((self._next[state] >= 0).any())
        return state if is_sound and is_finishable else self.broken

    def _last_bytes(self, token_ids: Sequence[int]) -> tuple[bytes, bool]:
        """The bytes at a text's end that are decoded together with what follows them.

        Byte-level: the last few. Byte-fallback: the run of byte tokens. False if they are broken,
        as they are too by a special token inside a character, which may or may not be decoded.
        """
        is_fallback = self._spellings.kind == "byte_fallback"
        parts = [b""]
        for token_id in reversed(token_ids[-MOST_TOKENS_BACK:]):
            flags = self._spellings.flags_of(token_id)
            if is_fallback and flags & SPECIAL:
                parts.append(b"")
            elif not flags & PRESENT or flags & SPECIAL or (is_fallback and not flags & BYTE):
                break
            else:
                parts[-1] = self._spellings.bytes_of(token_id) + parts[-1]
                if not is_fallback and len(parts[-1]) >= LONGEST_CHARACTER:
                    break
        last, *earlier = parts
        whole = last[: len(last) - len(unfinished(last))]
        return last, not is_fallback or all(map(_is_utf8, (whole, *earlier)))

    @cached_property
    def _classes(self) -> States:
        return self.token_class.numpy()

    @cached_property
    def _next(self) -> States:
        return self.class_next.numpy()

    @cached_property
    def _fallback(self) -> States:
        return self.class_fallback.numpy()


def build_automaton(
    spellings: TokenSpellings,
    policy: GuardPolicy,
    num_rows: int | None = None,
    stop_ids: Collection[int] = (),
) -> Automaton:
    """Apply a policy to a tokenizer: which tokens may come next, in every state.

    `spellings` come from `load_spellings`. `num_rows` is the width of the model's logits, by
    default one row for each id of the tokenizer; rows without a token are always refused.
    `stop_ids` are allowed between characters like special tokens: EOS, for instance.

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
    table = byte_table(allowed)
    classes = classify(spellings, allowed, table, num_rows, stop_ids)
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
        broken=len(table) - 1 if spellings.kind == "byte_fallback" else 0,
        _spellings=spellings,
        _bytes=table,
    )


def _is_utf8(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True
