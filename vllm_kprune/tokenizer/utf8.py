"""Characters that a token boundary cuts: where UTF-8 text ends inside a character.

The first byte of a character tells how many bytes it has; all others are continuation bytes,
0x80 to 0xBF. Tokens may begin and end between any two bytes.
"""

__all__ = ["LONGEST_CHARACTER", "character_length", "is_continuation", "unfinished"]

LONGEST_CHARACTER = 4


def character_length(lead: int) -> int:
    """Number of bytes of the character that begins with the byte `lead`.

    Bytes that begin no character (0xF5 and above) count as 4, continuation bytes as 1.

    >>> [character_length(character.encode()[0]) for character in "aé한😀"]
    [1, 2, 3, 4]
    """
    return 1 if lead < 0xC0 else 2 if lead < 0xE0 else 3 if lead < 0xF0 else LONGEST_CHARACTER


def is_continuation(byte: int) -> bool:
    """Is this byte the second or a later one of a character?"""
    return byte & 0xC0 == 0x80


def unfinished(text: bytes) -> bytes:
    r"""The beginning of a character that `text` ends in; empty if it ends between characters.

    "한" is ED 95 9C, so two of its bytes are unfinished and three are not:

    >>> unfinished(b"a\xed\x95"), unfinished(b"a\xed\x95\x9c")
    (b'\xed\x95', b'')
    """
    # A whole character of 4 bytes need not be looked at: its last three are continuations.
    for count, byte in enumerate(reversed(text[1 - LONGEST_CHARACTER :]), start=1):
        # The last lead byte. In ED 95 it is 2 from the end and has 3 bytes: 2 < 3, unfinished.
        if not is_continuation(byte):
            return text[-count:] if count < character_length(byte) else b""
    return b""
