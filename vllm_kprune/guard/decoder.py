"""How one token becomes bytes of text, by the tokenizer's own decoder.

Two kinds of decoder are understood (`TokenKind`):

- *Byte-level* (Qwen, Llama-3, Aya): the bytes of all tokens are joined and decoded together, so a
  character may begin in one token and end in the next. A token with a character outside GPT-2's
  alphabet (an added one) stands for its own UTF-8 bytes.
- *Byte-fallback* (Gemma): only the byte tokens <0xNN> are parts of characters. An unbroken run of
  them is decoded together. If the run is not valid UTF-8, every byte of it becomes U+FFFD. Every
  other token is whole text.

A decoder with any other step is refused, because the guard could then not keep its promise.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias

from vllm_kprune.errors import KPruneError
from vllm_kprune.tokenizer.bpe import BpeTokenizer, TokenKind
from vllm_kprune.tokenizer.byte_tokens import byte_alphabet

__all__ = ["Speller", "make_speller"]

# The decoder reads the digits with Rust's u8::from_str_radix, which also accepts a plus sign.
_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2}|\+[0-9A-Fa-f])>")
# The types of the steps, each followed by a comma.
# One text, so that a pattern can check the order of the steps as well.
_UNDERSTOOD: Mapping[TokenKind, str] = {
    "byte_level": r"ByteLevel,(Fuse,)?",
    "byte_fallback": r"((Replace|Metaspace|Strip),)*ByteFallback,((Fuse|Strip),)*",
}

# Token to (the bytes that it spells, is it a byte token?).
Speller: TypeAlias = Callable[[str], tuple[bytes, bool]]


def make_speller(tokenizer: BpeTokenizer) -> Speller:
    """The decoder of single tokens. Raises `KPruneError` for steps that are not understood."""
    steps = list(_steps(tokenizer.data.get("decoder")))
    types = "".join(f"{step.get('type')}," for step in steps)
    if not re.fullmatch(_UNDERSTOOD[tokenizer.kind], types):
        raise KPruneError(
            f"tokenizer.json: the decoder's steps are {types.rstrip(',')}; the guard understands "
            "ByteLevel, or Replace, ByteFallback, Fuse and Strip, and cannot work with others"
        )
    return _LevelSpeller() if tokenizer.kind == "byte_level" else _FallbackSpeller(steps)


def _steps(decoder: Any) -> Iterator[Mapping[str, Any]]:
    """The steps of a decoder; those of a sequence one by one."""
    if isinstance(decoder, Mapping) and decoder.get("type") == "Sequence":
        for step in decoder.get("decoders") or ():
            yield from _steps(step)
    elif isinstance(decoder, Mapping):
        yield decoder


class _LevelSpeller:
    """ByteLevel on one token: "Ġthe" -> b" the"."""

    def __init__(self) -> None:
        # 68 Latin-1 characters are not in the alphabet, so they must not pass for bytes.
        self._table = dict.fromkeys(range(256), "\ufffd")
        self._table |= {ord(letter): chr(value) for letter, value in byte_alphabet().items()}

    def __call__(self, token: str) -> tuple[bytes, bool]:
        # U+FFFD is not in Latin-1: encoding fails, and the token is taken for plain text.
        try:
            return token.translate(self._table).encode("latin-1"), False
        except UnicodeEncodeError:
            return token.encode(), False


class _FallbackSpeller:
    """Replacements, then ByteFallback: "▁the" -> b" the", "<0xEC>" -> b"\\xec"."""

    def __init__(self, steps: list[Mapping[str, Any]]) -> None:
        self._replacements = [_replacement(step) for step in steps if step["type"] in _REPLACING]

    def __call__(self, token: str) -> tuple[bytes, bool]:
        for old, new in self._replacements:
            token = token.replace(old, new)
        # After the replacements, as in the decoder: these can make or break a byte token.
        byte = _BYTE_TOKEN.fullmatch(token) if token.startswith("<0x") else None
        return (bytes([int(byte[1], 16)]), True) if byte else (token.encode(), False)


_REPLACING = ("Replace", "Metaspace")


def _replacement(step: Mapping[str, Any]) -> tuple[str, str]:
    try:
        if step["type"] == "Metaspace":
            return str(step["replacement"]), " "
        return str(step["pattern"]["String"]), str(step["content"])
    except (KeyError, TypeError):
        raise KPruneError(
            f"tokenizer.json: the decoder's step {dict(step)} is not a plain replacement of text, "
            "and the guard cannot work with it"
        ) from None
