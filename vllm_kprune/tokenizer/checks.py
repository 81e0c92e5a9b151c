"""Refuse a `tokenizer.json` that kprune and the `tokenizers` library would read differently.

The library repairs what is wrong with a file, and numbers added tokens itself, whatever ids it
has. kprune goes by the file, so pruning would break its laws without a word. The file is checked on
its own, and then against what the library made of it (`check_numbering`).
"""

from collections.abc import Iterable, Mapping
from typing import Any, Protocol

from tokenizers import Tokenizer

from vllm_kprune.errors import KPruneError, shown

__all__ = ["MOST_TOKENS", "check_added", "check_model", "check_numbering"]

# Largest id + 1: tables as long as that are made. Published vocabularies have up to 262,208 tokens.
MOST_TOKENS = 1 << 21
# The time to follow the merges of a token grows with the square of its length. The sum of these
# squares is 40 million for Aya, whose longest token has 512 characters.
_MOST_SQUARES = 1 << 30
# What changes how merges are applied, which `BpeTokenizer.derivation` does not follow.
_UNKNOWN_STEPS = ("dropout", "continuing_subword_prefix", "end_of_word_suffix")


class _Added(Protocol):
    @property
    def id(self) -> int: ...
    @property
    def content(self) -> str: ...


def check_model(model: Mapping[str, Any]) -> None:
    """Check the vocabulary and the settings of a BPE model. Raises `ValueError` with the reason."""
    vocab = model["vocab"]
    if not isinstance(vocab, Mapping) or not vocab:
        raise ValueError("expected a vocabulary that names the id of each token")
    for token, token_id in vocab.items():
        _check_id(token_id, token)
    if len(set(vocab.values())) < len(vocab):
        raise ValueError("two tokens of the vocabulary have the same id")
    if sum(len(token) ** 2 for token in vocab) > _MOST_SQUARES:
        raise ValueError("its tokens are too long to follow how they are merged")
    for name in _UNKNOWN_STEPS:
        if model.get(name):
            raise ValueError(f"{name} is {shown(model[name])}, which kprune does not support")


def check_added(added: Iterable[_Added], vocab: Mapping[str, int]) -> None:
    """Check the added tokens against the vocabulary. Raises `ValueError` with the reason."""
    largest, ids, contents = max(vocab.values()), set[int](), set[str]()
    for token in added:
        _check_id(token.id, token.content)
        if not token.content or token.id in ids or token.content in contents:
            raise ValueError(f"the added token {shown(token.content)} (id {token.id}) occurs twice")
        ids.add(token.id)
        contents.add(token.content)
        # One that the vocabulary lacks comes after it: the library counts on from there.
        known = vocab.get(token.content)
        if known != token.id and (known is not None or token.id <= largest):
            where = f"id {known}" if known is not None else f"ids up to {largest}"
            raise ValueError(
                f"the added token {shown(token.content)} has id {token.id}, the vocabulary {where}"
            )


def check_numbering(added: Iterable[_Added], encoder: Tokenizer, source: str) -> None:
    """Raise `KPruneError` for an added token that the library gives another id than the file."""
    for token in added:
        if (numbered := encoder.token_to_id(token.content)) != token.id:
            raise KPruneError(
                f"{source}: the added token {shown(token.content)} has id {token.id}, but is read "
                f"as id {numbered}; save the tokenizer again with transformers"
            )


def _check_id(value: object, token: object) -> None:
    # True is an int in Python.
    if type(value) is not int or not 0 <= value < MOST_TOKENS:
        raise ValueError(
            f"the id of {shown(token)} is {shown(value)}, expected 0 to {MOST_TOKENS - 1:,}"
        )
