"""Judges tokens of guarded answers by characters alone, with none of the guard's tables.

Follows a request token by token: the bytes of a character that is not finished, and the phase (is
the model reasoning, or answering?). From these it says which tokens may come next, by trying every
token of the vocabulary with Python's own UTF-8 decoder and the rules of `guard_oracle`.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
from tokenizers import Tokenizer

from support.guard_oracle import BruteForce, is_allowed
from vllm_kprune.guard.policy import GuardPolicy
from vllm_kprune.tokenizer.byte_tokens import byte_alphabet

__all__ = ["Judge", "Place", "Spelling", "spell"]

# Decoders skip hidden control tokens and show others.
_ABSENT, _HIDDEN, _SHOWN, _BYTE, _TEXT = range(5)
_ESCAPED_U = re.compile(rb"(?s)([^\\]|\\[^u])*\\u")
_BEFORE, _REASONING, _ANSWER = "before", "reasoning", "answer"


@dataclass(frozen=True)
class Spelling:
    """What each id of a tokenizer is: nothing, a control token, a byte token or text; its bytes."""

    kinds: tuple[int, ...]
    data: tuple[bytes, ...]
    is_fallback: bool


def spell(tokenizer: Tokenizer, num_rows: int) -> Spelling:
    """Spell the ids of a small tokenizer up to the width of the logits."""
    kinds, data = [_ABSENT] * num_rows, [b""] * num_rows
    is_fallback = tokenizer.token_to_id("<0x00>") is not None
    letters = byte_alphabet()
    added = tokenizer.get_added_tokens_decoder()
    for token, number in tokenizer.get_vocab(with_added_tokens=True).items():
        if number in added:
            kinds[number] = _HIDDEN if added[number].special else _SHOWN
        elif is_fallback and len(token) == 6 and token.startswith("<0x"):
            kinds[number], data[number] = _BYTE, bytes([int(token[3:5], 16)])
        elif is_fallback:
            kinds[number], data[number] = _TEXT, token.replace("▁", " ").encode()
        else:
            kinds[number], data[number] = _TEXT, bytes(letters[letter] for letter in token)
    return Spelling(tuple(kinds), tuple(data), is_fallback)


@dataclass(frozen=True)
class Place:
    """Where a text has come to.

    `pending` are the bytes of an unfinished character. `is_broken`: the text ends in byte tokens
    that are no UTF-8, so that a byte-fallback decoder would show each of them as U+FFFD.
    `is_escaped`: it ends in an odd number of backslashes, and is JSON.
    """

    phase: str = _BEFORE
    pending: bytes = b""
    is_broken: bool = False
    is_escaped: bool = False

    @property
    def is_reasoning(self) -> bool:
        """Is the model thinking?"""
        return self.phase == _REASONING


class Judge:
    """What one kind of request may produce: by `answer`, and by `reasoning` while it thinks.

    None means that a phase is free. Without `think_ids`, the tokens that begin and end the
    reasoning, there is no reasoning.
    """

    def __init__(
        self,
        spelling: Spelling,
        answer: GuardPolicy | None,
        reasoning: GuardPolicy | None = None,
        think_ids: tuple[int, int] | None = None,
    ) -> None:
        self._spelling = spelling
        self._policies = {_BEFORE: answer, _ANSWER: answer, _REASONING: reasoning}
        self._think_ids = think_ids
        self._allowed: dict[Place, np.ndarray] = {}

    @property
    def guards_nothing(self) -> bool:
        """Is the request unguarded?"""
        return not any(self._policies.values())

    def after_prompt(self, prompt: Sequence[int]) -> Place:
        """Where a prompt ends. A character that it leaves unfinished may be one that is refused."""
        phase = _BEFORE
        for token in prompt:
            if self._think_ids and token in self._think_ids:
                phase = _REASONING if token == self._think_ids[0] else _BEFORE
        pending, is_broken = self._end_of(prompt, self._policies[phase])
        place = Place(phase, pending, is_broken)
        if pending or is_broken or not self._reads_escapes(phase):
            return place
        for token in prompt:
            place = replace(place, is_escaped=self._is_escaped_after(place, token))
        return place

    def pieces(
        self, prompt: Sequence[int], answer: Sequence[int]
    ) -> Iterator[tuple[GuardPolicy, list[int]]]:
        """The guarded parts of an answer, each with its policy, cut between characters.

        Without control tokens, which are no characters of the model's.
        """
        place, begin, end = self.after_prompt(prompt), None, 0
        for n, token in enumerate(answer):
            phase = _REASONING if place.is_reasoning else _ANSWER
            if not place.pending:
                begin, end = (n if begin is None else begin), n
            place = self.after(place, token)
            if (_REASONING if place.is_reasoning else _ANSWER) != phase or n + 1 == len(answer):
                end = end if place.pending else n + 1
                policy = self._policies[phase]
                if policy is not None and begin is not None:
                    ids = answer[begin:end]
                    yield policy, [i for i in ids if self._spelling.kinds[i] != _SHOWN]
                begin = None

    def allowed(self, place: Place) -> np.ndarray:
        """Which tokens may come next, bool [rows]."""
        if place not in self._allowed:
            tokens = range(len(self._spelling.kinds))
            self._allowed[place] = np.array([self._is_allowed(place, one) for one in tokens])
        return self._allowed[place]

    def after(self, place: Place, token: int) -> Place:
        """The place after one more token."""
        kind, data = self._spelling.kinds[token], self._spelling.data[token]
        if kind in (_HIDDEN, _SHOWN):
            return self._after_control(place, token)
        if place.phase == _BEFORE and not _is_white(data):
            place = replace(place, phase=_ANSWER)
        text = place.pending + data
        pending = _unfinished(text)
        # Only in a phase that is free, or after such a prompt.
        is_broken = place.is_broken or not _is_utf8(text[: len(text) - len(pending)])
        is_run = self._spelling.is_fallback and kind == _BYTE
        return replace(
            place,
            pending=pending,
            is_broken=is_run and is_broken,
            is_escaped=self._is_escaped_after(place, token),
        )

    def _after_control(self, place: Place, token: int) -> Place:
        is_hidden = self._spelling.kinds[token] == _HIDDEN
        # A decoder that skips the token decodes what is on both sides of it together.
        is_broken = place.is_broken or (self._spelling.is_fallback and bool(place.pending))
        start, end = self._think_ids or (None, None)
        phase = place.phase
        if phase == _BEFORE and token == start:
            phase = _REASONING
        elif phase == _REASONING and token == end:
            phase = _ANSWER
        is_escaped = phase == place.phase and self._is_escaped_after(place, token)
        return Place(phase, b"", is_hidden and is_broken, is_escaped)

    def _reads_escapes(self, phase: str) -> bool:
        policy = self._policies[phase]
        return policy is not None and policy.escapes == "json"

    def _is_escaped_after(self, place: Place, token: int) -> bool:
        kind, data = self._spelling.kinds[token], self._spelling.data[token]
        if not self._reads_escapes(place.phase) or kind == _SHOWN:
            return False
        before = b"\\" * place.is_escaped
        text = before + data
        return bool(len(text) - len(text.rstrip(b"\\")) & 1)

    def _is_allowed(self, place: Place, token: int) -> bool:
        kind, data = self._spelling.kinds[token], self._spelling.data[token]
        policy = self._policies[place.phase]
        if policy is None:
            return self.guards_nothing or kind != _ABSENT
        if kind in (_HIDDEN, _SHOWN):
            return not place.pending
        if kind == _ABSENT or (place.is_broken and kind == _BYTE):
            return False
        text = place.pending + data
        rest = _unfinished(text)
        whole = text[: len(text) - len(rest)]
        if not _is_utf8(whole) or rest not in _beginnings(policy):
            return False
        if policy.escapes == "json" and _ESCAPED_U.match(b"\\" * place.is_escaped + text):
            return False
        return all(is_allowed(character, policy) for character in whole.decode())

    def _end_of(self, prompt: Sequence[int], policy: GuardPolicy | None) -> tuple[bytes, bool]:
        kinds, is_fallback = self._spelling.kinds, self._spelling.is_fallback
        # What is decoded together: with fallback, also across a token that the decoder skips.
        parts = [b""]
        for token in reversed(prompt):
            if is_fallback and kinds[token] == _HIDDEN:
                parts.append(b"")
            elif kinds[token] == (_BYTE if is_fallback else _TEXT):
                parts[-1] = self._spelling.data[token] + parts[-1]
            else:
                break
        text, *earlier = parts
        rest = _unfinished(text)
        fits = policy is None or rest in _beginnings(policy)
        if not is_fallback:
            return (rest if fits else b""), False
        whole = (text[: len(text) - len(rest)], *earlier)
        is_broken = not fits or not all(map(_is_utf8, whole))
        return (b"" if is_broken else rest), is_broken


def _unfinished(text: bytes) -> bytes:
    """The end of a text that may still become a character."""
    for length in (3, 2, 1):
        end = text[-length:]
        try:
            end.decode()
        except UnicodeDecodeError as error:
            if error.reason == "unexpected end of data" and error.start == 0:
                return end
    return b""


def _is_utf8(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True


def _is_white(text: bytes) -> bool:
    return _is_utf8(text) and text.decode().isspace()


@cache
def _beginnings(policy: GuardPolicy) -> set[bytes]:
    return BruteForce(policy).beginnings
