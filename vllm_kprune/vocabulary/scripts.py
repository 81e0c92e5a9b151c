"""Judge tokens by the Unicode scripts of their characters.

Scripts come from Unicode data (Script_Extensions, UAX #24), never from hand-written ranges. A token
that ends inside a character is judged by the characters that its bytes can still become: ED 95 can
only become Hangul. A token that begins inside a character can belong to many scripts, so only
evidence decides.
"""

import itertools
from collections.abc import Iterator
from functools import cache
from typing import Literal

import regex

from vllm_kprune.errors import KPruneError
from vllm_kprune.profile import Profile
from vllm_kprune.tokenizer.utf8 import character_length, is_continuation

__all__ = [
    "SHARED_SCRIPTS",
    "ScriptJudge",
    "ScriptVerdict",
    "hanja_characters",
    "letter_set",
    "main_script",
    "split_incomplete",
    "standard_characters",
]

# Scripts that many languages share (and mathematics): their tokens are kept only on evidence.
SHARED_SCRIPTS = ("Latin", "Greek")
# Kept on evidence too, if a language is written in it. The standard characters of that language are
# always kept.
_HAN = "Han"
# Python's codecs for the national standards of characters that a language is written with.
_STANDARDS = {"zh": ("gb2312", "big5"), "ja": ("shift_jis",)}
_NEUTRAL_SCRIPTS = ("Common", "Inherited")
_SCRIPTS_BY_FREQUENCY = (
    *("Latin", "Han", "Cyrillic", "Devanagari", "Arabic", "Hangul", "Thai", "Katakana"),
    *("Hiragana", "Greek", "Bengali", "Tamil", "Telugu", "Hebrew", "Malayalam", "Gujarati"),
    *("Kannada", "Georgian", "Armenian", "Gurmukhi", "Myanmar", "Khmer", "Sinhala", "Ethiopic"),
    *("Lao", "Oriya", "Tibetan", "Mongolian", "Thaana", "Syriac"),
)

# Runs of punctuation, as in code, are kept on evidence. A single mark is always kept, with or
# without a space before it.
_MARKS = regex.compile(r" ?+[!-/:-@\[-`{-~\s]{2,}")

ScriptVerdict = Literal["script", "shared", "foreign"]


class ScriptJudge:
    """Judges tokens for a profile: kept for their script, kept on evidence (shared), or foreign."""

    def __init__(self, profile: Profile) -> None:
        scripts = profile.scripts()
        own = sorted(scripts - {*SHARED_SCRIPTS, _HAN})
        # Characters of no single script are in every `_Letters`, so tokens of digits or emoji count
        # as the profile's own and are always kept.
        self._own = _Letters(*own)
        # With hanja, words of several characters are kept on evidence, as for Chinese. Without,
        # parts of characters are: a few hundred tokens that save one in three for each of them.
        han = {_HAN} & (scripts if profile.hanja == "none" else {_HAN})
        self._shared = _Letters(*own, *SHARED_SCRIPTS, *han)
        in_korean = {_HAN} & ({_HAN} if "Hangul" in scripts else scripts)
        self._begun = _Letters(*own, *SHARED_SCRIPTS, *in_korean)
        standards = (name for code in profile.languages for name in _STANDARDS.get(code, ()))
        self._han = hanja_characters(profile.hanja).union(*map(standard_characters, standards))

    def __call__(self, token: bytes) -> ScriptVerdict:
        """Judge a token's UTF-8 bytes, which may begin or end inside a character."""
        head, text, tail = split_incomplete(token)
        # First, because marks are of no single script and would count as own.
        if not head and not tail and _MARKS.fullmatch(text):
            return "shared"
        if self._own.spell(text, tail) or (not tail and text in self._han):
            # Continuation bytes at the start fit into characters of many scripts.
            return "shared" if head else "script"
        begun = bool(tail) and self._shared.spell(text, b"") and self._begun.spell("", tail)
        return "shared" if begun or self._shared.spell(text, tail) else "foreign"


def letter_set(*scripts: str) -> str:
    """The characters of these scripts and those of no single script, as a `regex` set (V1).

    For a few common marks, such as the middle dot, Script_Extensions lists all scripts that use
    them. They count as common if a shared script is among these.
    """
    own = "".join(rf"\p{{scx={script}}}" for script in (*scripts, *_NEUTRAL_SCRIPTS))
    shared = "".join(rf"\p{{scx={script}}}" for script in SHARED_SCRIPTS)
    return rf"[{own}[[\p{{sc=Common}}\p{{sc=Inherited}}]&&[{shared}]]]"


class _Letters:
    """Tests whether text consists of the characters of a `letter_set`."""

    def __init__(self, *scripts: str) -> None:
        letter = letter_set(*scripts)
        # V1: only there has `regex` sets within sets, and && for what is in both.
        self._letter = regex.compile(rf"(?V1){letter}")
        self._letters = regex.compile(rf"(?V1){letter}*")

    def spell(self, text: str, tail: bytes) -> bool:
        """Are all characters in the set, and can the unfinished one become one that is?"""
        if not self._letters.fullmatch(text):
            return False
        # One possible character is enough: what follows in a text is not known here.
        return not tail or bool(self._letter.search(_completions(tail)))


def split_incomplete(token: bytes) -> tuple[bytes, str, bytes]:
    r"""Split a token into the end of a character, whole characters, and the beginning of one.

    The last part also takes what no UTF-8 text contains.

    >>> split_incomplete(b"\x9c the \xed\x95")
    (b'\x9c', ' the ', b'\xed\x95')
    """
    start = 0
    # Continuation bytes (10xxxxxx) at the start end a character that began in another token.
    while start < len(token) and is_continuation(token[start]):
        start += 1
    rest = token[start:]
    try:
        return token[:start], rest.decode(), b""
    except UnicodeDecodeError as error:
        return token[:start], rest[: error.start].decode(), rest[error.start :]


@cache
def _completions(tail: bytes) -> str:
    """Every character whose UTF-8 form begins with `tail`; empty if there is none."""
    lead = tail[0]
    length = character_length(lead)
    continued = all(map(is_continuation, tail[1:]))
    # C0 and C1 would begin overlong forms, F5 and above characters beyond U+10FFFF.
    if lead > 0xF4 or lead < 0xC2 or len(tail) >= length or not continued:
        return ""
    return "".join(_characters(tail, length))


def _characters(prefix: bytes, length: int) -> Iterator[str]:
    """Characters of `length` UTF-8 bytes that begin with `prefix`."""
    missing = length - len(prefix)
    # The payload of a lead byte: 5, 4 or 3 bits for lengths 2, 3 and 4. ED 95 gives 0xD, then
    # 0x355; the missing byte adds 6 bits, so the characters are U+D540 to U+D57F.
    value = prefix[0] & (0x7F >> length)
    for byte in prefix[1:]:
        value = value << 6 | byte & 0x3F
    smallest = {2: 0x80, 3: 0x800, 4: 0x10000}[length]
    for code in range(value << 6 * missing, (value + 1) << 6 * missing):
        # Neither overlong forms nor surrogates are UTF-8.
        if smallest <= code <= 0x10FFFF and not 0xD800 <= code <= 0xDFFF:
            yield chr(code)


def hanja_characters(choice: str) -> frozenset[str]:
    """Han characters kept for Korean: none, the 4,888 of KS X 1001, or all of Unicode's.

    KS X 1001 comes from Python's `euc_kr` codec. The standard encodes a character once for each of
    its readings, which Unicode has as compatibility characters: the set has these too.
    """
    if choice == "none":
        return frozenset()
    if choice == "ksx1001":
        return standard_characters("euc_kr")
    if choice == "all":
        han = regex.compile(r"\p{sc=Han}")
        # From the CJK radicals to the end of Extension H.
        return frozenset(chr(c) for c in range(0x2E80, 0x323B0) if han.match(chr(c)))
    raise KPruneError(f"hanja: got {choice!r}, expected none, ksx1001 or all")


@cache
def standard_characters(codec: str) -> frozenset[str]:
    """Han characters of the national standard that one of Python's two-byte codecs encodes."""
    han = regex.compile(r"\p{sc=Han}")
    pairs = (bytes(pair) for pair in itertools.product(range(0x81, 0xFF), range(0x40, 0xFF)))
    characters = (pair.decode(codec, errors="ignore") for pair in pairs)
    # Shift JIS reads some pairs as two half-width katakana, hence the length.
    return frozenset(c for c in characters if len(c) == 1 and han.match(c))


@cache
def _script_pattern(script: str) -> "regex.Pattern[str]":
    return regex.compile(rf"\p{{sc={script}}}")


def main_script(token: bytes) -> str:
    """Script of the first character that has a script of its own; for display.

    "Common" if no character has (digits, punctuation, emoji), "Incomplete" for a part of a
    character, "Other" for scripts that are rare in today's vocabularies.
    """
    head, text, tail = split_incomplete(token)
    for character in text:
        if all(not _script_pattern(script).match(character) for script in _NEUTRAL_SCRIPTS):
            names = (s for s in _SCRIPTS_BY_FREQUENCY if _script_pattern(s).match(character))
            return next(names, "Other")
    return "Incomplete" if head or tail else "Common"
