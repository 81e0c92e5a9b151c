r"""Refuse `\u` in JSON, where six ASCII characters spell any character.

A guard that looks at the characters of an answer lets `\u4e01` pass, and whoever parses the answer
reads 丁. Every character has a shorter spelling in JSON (control characters apart), so nothing is
lost without `\u`. A backslash that is itself escaped begins nothing: `\\u` is a backslash and a u.
So one more state is enough, the last one of the table: between characters, after an odd number of
backslashes.

    text so far    state      may "u" follow?    and then
    a              0          yes                0
    a\             escaped    no; "n" may        0
    a\\            0          yes                0

Special tokens change nothing, because decoders may skip them. All of an answer is read in this way,
not only its strings. HTML entities, percent-encoding and base64 are not read.
"""

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from vllm_kprune.guard.classes import HIDDEN, SHOWN, Classes, States, close_dead_ends, number_tuples
from vllm_kprune.guard.token_texts import BROKEN_STEP, BackslashSteps
from vllm_kprune.guard.tokens import TokenSpellings
from vllm_kprune.guard.utf8 import REFUSED

__all__ = ["add_escapes"]


def add_escapes(classes: Classes, spellings: TokenSpellings) -> Classes:
    """The same classes with the state `escaped`, split by what tokens do to backslashes."""
    steps = _steps(spellings, classes.of_token)
    of_token, (number, even, odd) = number_tuples(
        (len(classes.fallback), 3, 3), (classes.of_token, *(steps.T + 1))
    )
    even, odd = even - 1, odd - 1
    old = classes.following[:, number]
    escaped = len(old)

    def through(following: States, after: npt.NDArray[np.int64]) -> States:
        # Only where a token ends between characters does it matter how many backslashes it has.
        reached = np.where((following == 0) & (after == 1), escaped, following)
        return np.where(after == BROKEN_STEP, REFUSED, reached)

    # Inside a character, the number is even: its bytes are no backslashes.
    following = np.concatenate([through(old, even), through(old[:1], odd)]).astype(np.int16)
    close_dead_ends(following, np.unique(of_token))
    fallback = classes.fallback[number]
    fallback = np.where((fallback == 0) & (even == 1), escaped, fallback).astype(np.int16)
    return replace(
        classes, following=following, fallback=fallback, of_token=of_token, escaped=escaped
    )


def _steps(spellings: TokenSpellings, of_token: States) -> BackslashSteps:
    """What each row of the logits does."""
    steps = np.zeros((len(of_token), 2), np.int8)
    width = min(len(steps), spellings.num_tokens)
    steps[:width] = spellings.backslashes[:width]
    # After the texts, because control tokens act as such whatever they spell.
    steps[of_token == HIDDEN] = 0, 1
    steps[of_token == SHOWN] = 0, 0
    return steps
