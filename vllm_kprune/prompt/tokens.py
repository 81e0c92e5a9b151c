"""A text and its tokens, which scorers read, and the control tokens in a text."""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from tokenizers import Encoding, Tokenizer

from vllm_kprune.arrays import Integers
from vllm_kprune.errors import KPruneError
from vllm_kprune.tokenizer.encoder import raise_failure

__all__ = [
    "Cancelled",
    "ControlTokens",
    "CountTokens",
    "IsCancelled",
    "Tokens",
    "control_tokens",
    "encode",
]

# True once the caller no longer wants the result.
IsCancelled = Callable[[], bool]
# The number of tokens of a text.
CountTokens = Callable[[str], int]
# Added tokens that steer a model although tokenizer.json does not flag them as special.
# Qwen3's <think> and <tool_call> are such, and <|…|> is how many families write theirs.
_STEERING = re.compile(r"</?(?:think|tool_call|tool_response|function)>|<\|[^|<>\s]+\|>")


class Cancelled(Exception):
    """The caller no longer wants the result."""


@dataclass(frozen=True, eq=False)
class Tokens:
    """A text and the ranker's tokens of it.

    `ids`: [tokens]. `offsets`: [tokens, 2] begin and end in characters of `text`.
    """

    text: str
    ids: Integers
    offsets: Integers


class ControlTokens:
    """Finds texts that a tokenizer reads as control tokens, such as `<start_of_turn>`."""

    def __init__(self, names: Iterable[str] = ()) -> None:
        self.names = frozenset(name for name in names if name)
        self._lengths = sorted({len(name) for name in self.names}, reverse=True)
        firsts = "".join(sorted({re.escape(name[0]) for name in self.names}))
        # [] is not a valid pattern: without names there is nothing to search for.
        self._first = re.compile(f"[{firsts}]") if firsts else None

    def find(self, text: str) -> list[tuple[int, int]]:
        """(begin, end) of each, in order. Where several begin, the longest is found."""
        found: list[tuple[int, int]] = []
        for match in self._first.finditer(text) if self._first else ():
            begin = match.start()
            # The search also stops at first characters inside the token that was found last.
            if found and begin < found[-1][1]:
                continue
            ends = (begin + length for length in self._lengths)
            if end := next((end for end in ends if text[begin:end] in self.names), 0):
                found.append((begin, end))
        return found


def control_tokens(tokenizer: Tokenizer) -> frozenset[str]:
    """The special tokens of a tokenizer, and a few others that steer a model."""
    added = tokenizer.get_added_tokens_decoder().values()
    return frozenset(t.content for t in added if t.special or _STEERING.fullmatch(t.content))


def encode(tokenizer: Tokenizer, text: str) -> Encoding:
    """The tokens of `text`, without the special tokens that a prompt begins with.

    `encode_batch` is used for a single text because it is the only call of the library that lets
    other threads run meanwhile. Raises `KPruneError` for half a surrogate pair.
    """
    # For half a surrogate pair the library raises a TypeError that does not mention Unicode.
    try:
        return tokenizer.encode_batch([text], add_special_tokens=False)[0]
    except (TypeError, UnicodeEncodeError):
        raise KPruneError("the text has half a surrogate pair; send valid Unicode") from None
    except BaseException as error:
        raise_failure(error, "the tokenizer fails on the text")
        raise
