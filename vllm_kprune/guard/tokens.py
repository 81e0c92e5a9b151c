"""What every token of a tokenizer spells, as flat arrays: whole characters, and parts at its ends.

This depends only on the tokenizer; `guard/automaton.py` applies policies to it.
"""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from vllm_kprune.arrays import Bytes
from vllm_kprune.errors import KPruneError
from vllm_kprune.guard.characters import NUM_CODE_POINTS
from vllm_kprune.guard.controls import NO_EVIDENCE, ControlEvidence, control_ids
from vllm_kprune.guard.decoder import make_speller
from vllm_kprune.guard.token_texts import BackslashSteps, backslash_steps, only_of
from vllm_kprune.tokenizer.bpe import BpeTokenizer, TokenKind
from vllm_kprune.vocabulary.scripts import split_incomplete

__all__ = [
    "BYTE",
    "CONTROL",
    "PRESENT",
    "SPECIAL",
    "UNSPELLABLE",
    "Fragments",
    "TokenSpellings",
    "spell_tokens",
]

# Bits of `TokenSpellings.flags`.
PRESENT, SPECIAL, BYTE, UNSPELLABLE, CONTROL = 1, 2, 4, 8, 16
# Arrays are as long as the largest id: a damaged file with one huge id must not take all memory.
_MAX_TOKENS = 1 << 23
# Of a character of at most 4 bytes, at most 3 are missing or left over.
_MOST_FRAGMENT_BYTES = 3
_LAST_WHITE = 0x3000  # the ideographic space

Ints: TypeAlias = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Fragments:
    """Distinct parts of characters: `parts` uint8 [n, 3], padded with 0; `lengths` int32 [n].

    `token_ids` are the tokens that have a part; `index` says which one each of them has.
    """

    parts: Bytes
    lengths: Ints
    token_ids: Ints
    index: Ints


@dataclass(frozen=True)
class TokenSpellings:
    """What each token spells. A token's share of a flat array is `starts[i]:starts[i + 1]`.

    `spelled` uint8: the bytes, by `starts`. `code_points` uint32: the whole characters among them,
    by `code_starts`. `head_lengths` uint8 [num_tokens]: number of bytes before these, which end a
    character; `tail_lengths`: number of bytes after these, which begin one. `flags` uint8
    [num_tokens]: PRESENT (the id has a token), CONTROL (`guard/controls.py`), SPECIAL (a control
    token that decoders may skip), BYTE (a byte token of byte fallback), UNSPELLABLE (never part of
    valid UTF-8).

    The token 9C 20 ED 95 (the end of a syllable, a space, the beginning of the next) has one code
    point, a head of length 1 and a tail of length 2.
    """

    kind: TokenKind
    spelled: Bytes
    starts: Ints
    code_points: npt.NDArray[np.uint32]
    code_starts: Ints
    head_lengths: Bytes
    tail_lengths: Bytes
    flags: Bytes

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the arrays in hex."""
        digest = hashlib.sha256(self.kind.encode())
        for name in ("spelled", "starts", "code_starts", "head_lengths", "tail_lengths", "flags"):
            digest.update(getattr(self, name).tobytes())
        return digest.hexdigest()

    @property
    def num_tokens(self) -> int:
        """The largest id, plus one. Ids below may have no token."""
        return len(self.flags)

    def bytes_of(self, token_id: int) -> bytes:
        """The bytes that a token spells. They may be part of a character."""
        return self.spelled[self.starts[token_id] : self.starts[token_id + 1]].tobytes()

    def flags_of(self, token_id: int) -> int:
        """The flags of any id; 0 where there is no token."""
        return int(self.flags[token_id]) if 0 <= token_id < len(self.flags) else 0

    @cached_property
    def heads(self) -> Fragments:
        """Bytes at the beginning of tokens that continue a character."""
        return self._fragments(self.head_lengths, self.starts[:-1])

    @cached_property
    def tails(self) -> Fragments:
        """Bytes at the end of tokens that begin a character."""
        return self._fragments(self.tail_lengths, self.starts[1:] - self.tail_lengths)

    @cached_property
    def white(self) -> npt.NDArray[np.bool_]:
        """Which tokens are white space, or nothing: bool [num_tokens]."""
        members = np.zeros(NUM_CODE_POINTS, np.bool_)
        members[[code for code in range(_LAST_WHITE + 1) if chr(code).isspace()]] = True
        has_parts = (self.head_lengths > 0) | (self.tail_lengths > 0)
        is_text = self.flags & (PRESENT | UNSPELLABLE) == PRESENT
        white = only_of(members, self.code_points, self.code_starts)
        white &= is_text & ~has_parts
        return white

    @cached_property
    def backslashes(self) -> BackslashSteps:
        """What each token does to the number of backslashes before it."""
        return backslash_steps(self.spelled, self.starts)

    def _fragments(self, lengths: Bytes, begins: Ints) -> Fragments:
        token_ids = np.flatnonzero(lengths).astype(np.int32)
        # The last column is the length: without it, FF and FF 00 would be one part.
        rows = np.zeros((len(token_ids), _MOST_FRAGMENT_BYTES + 1), np.uint8)
        rows[:, -1] = lengths[token_ids]
        for k in range(_MOST_FRAGMENT_BYTES):
            longer = rows[:, -1] > k
            rows[longer, k] = self.spelled[begins[token_ids[longer]] + k]
        distinct, index = np.unique(rows, axis=0, return_inverse=True)
        return Fragments(
            distinct[:, :-1], distinct[:, -1].astype(np.int32), token_ids, index.astype(np.int32)
        )


def spell_tokens(
    tokenizer: BpeTokenizer, evidence: ControlEvidence = NO_EVIDENCE
) -> TokenSpellings:
    """Spell every token; the evidence says which of them are control tokens.

    Raises `KPruneError` for a decoder that is not understood.
    """
    tokens, spell = tokenizer.tokens, make_speller(tokenizer)
    num_tokens = max(tokens, default=-1) + 1
    if num_tokens > _MAX_TOKENS or min(tokens, default=0) < 0:
        raise KPruneError(f"tokenizer.json: expected ids from 0 to {_MAX_TOKENS - 1:,}")
    flags = np.zeros(num_tokens, np.uint8)
    spelled = [b""] * num_tokens
    for token_id, token in tokens.items():
        spelled[token_id], is_byte = spell(token)
        flags[token_id] = PRESENT | BYTE * is_byte
    flags[[token.id for token in tokenizer.added if token.special]] |= SPECIAL
    flags[control_ids(tokenizer, evidence)] |= CONTROL
    return _flatten(tokenizer.kind, spelled, flags)


def _flatten(kind: TokenKind, spelled: list[bytes], flags: Bytes) -> TokenSpellings:
    texts = []
    head_lengths, tail_lengths = np.zeros((2, len(spelled)), np.uint8)
    for token_id, token in enumerate(spelled):
        try:
            texts.append(token.decode())
        except UnicodeDecodeError:
            head, text, tail = split_incomplete(token)
            # More than 3 bytes cannot begin or end inside one character: no UTF-8 has them.
            if max(len(head), len(tail)) > _MOST_FRAGMENT_BYTES:
                flags[token_id] |= UNSPELLABLE
            else:
                head_lengths[token_id], tail_lengths[token_id] = len(head), len(tail)
            texts.append(text)
    return TokenSpellings(
        kind=kind,
        spelled=np.frombuffer(b"".join(spelled), np.uint8),
        starts=_starts([len(token) for token in spelled]),
        # UTF-32 is one uint32 for each code point, which is what len(text) counts below.
        code_points=np.frombuffer("".join(texts).encode("utf-32-le"), "<u4"),
        code_starts=_starts([len(text) for text in texts]),
        head_lengths=head_lengths,
        tail_lengths=tail_lengths,
        flags=flags,
    )


def _starts(lengths: list[int]) -> Ints:
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int32)
