"""Tokenizers without a cache of words, for a process that opens hundreds of them.

The library `tokenizers` (seen in 0.23.3) does not free the cache of a tokenizer that is gone, and
each of its threads has one: a small tokenizer that encodes 20,000 words leaves 9 MB behind.
"""

from collections.abc import Callable
from typing import Any

from tokenizers import Tokenizer


def turn_off_word_caches() -> None:
    """Open every tokenizer of this process without a cache; what it encodes stays the same."""
    for name in ("from_buffer", "from_file", "from_str"):
        setattr(Tokenizer, name, staticmethod(_without_cache(getattr(Tokenizer, name))))


def _without_cache(open_one: Callable[..., Tokenizer]) -> Callable[..., Tokenizer]:
    def opened(*arguments: Any) -> Tokenizer:
        tokenizer = open_one(*arguments)
        if hasattr(tokenizer.model, "_resize_cache"):
            tokenizer.model._resize_cache(0)
        return tokenizer

    return opened
