"""How a vocabulary spells bytes: in GPT-2's alphabet, or as `<0x00>` to `<0xFF>`."""

from collections.abc import Mapping

__all__ = ["BYTE_TOKENS", "byte_alphabet", "byte_name"]

BYTE_TOKENS: Mapping[str, int] = {f"<0x{value:02X}>": value for value in range(256)}


def byte_name(value: int, vocab: Mapping[str, int]) -> str:
    """The token that spells a byte: <0x09>; in a vocabulary without it, as Gemma-2's, the tab.

    If neither is there, the name that is missing.
    """
    name = f"<0x{value:02X}>"
    # From 0x80 on a byte is a part of a character, which only its byte token can spell.
    return chr(value) if name not in vocab and value < 0x80 and chr(value) in vocab else name


def byte_alphabet() -> Mapping[str, int]:
    """GPT-2's printable alphabet: character -> the byte that it stands for."""
    return _ALPHABET


def _build_alphabet() -> dict[str, int]:
    # Bytes that are printable in Latin-1 stand for themselves; the others become U+0100 onwards, so
    # that a space is "Ġ".
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [value for value in range(256) if value not in printable]
    table = {chr(value): value for value in printable}
    return table | {chr(256 + n): value for n, value in enumerate(others)}


_ALPHABET = _build_alphabet()
