"""Which characters a policy allows, from Unicode data.

The rules, in order (each has a test, and a row in the documentation's table):

1. Characters whose Script_Extensions (UAX #24) name an allowed script.
2. Characters of no single script (Common, Inherited): digits, punctuation, symbols, emoji, white
   space, control and format characters, combining marks, mathematical letters. Some Common
   characters list the scripts that use them (the Japanese prolonged sound mark, the Arabic comma):
   they are allowed with one of these scripts, and always if Latin or Greek is among them (the
   middle dot).
3. With `languages`, Roman numerals (Ⅳ) and the Latin letters that `latin` says, by default those
   of European alphabets: every language has loan words, names, units and code. `scripts` are taken
   literally.
4. `hanja` adds the 4,888 Han characters of KS X 1001, or the script Han.
5. `digits`, `punctuation` and `emoji` remove those characters if they are switched off.
6. Never allowed: unassigned and private-use code points, which belong to no script, and U+FFFD, the
   sign of a broken text.
7. `allow` overrides all of these, except for surrogates, which UTF-8 cannot spell.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import regex

from vllm_kprune.guard.policy import GuardPolicy, Latin
from vllm_kprune.profile import LANGUAGES
from vllm_kprune.vocabulary.scripts import hanja_characters, letter_set

__all__ = ["NUM_CODE_POINTS", "CharacterTable", "allowed_characters"]

NUM_CODE_POINTS = 0x110000
CharacterTable: TypeAlias = npt.NDArray[np.bool_]

# Latin-1, Latin Extended-A, and the two letters of Romanian that these lack.
_LATIN: Mapping[Latin, str] = {
    "ascii": "[A-Za-z]",
    "european": r"[A-Za-z\u00C0-\u00D6\u00D8-\u00F6\u00F8-\u017F\u0218-\u021B]",
    "all": letter_set("Latin"),
}
# The Latin characters that are numbers.
_ROMAN_NUMERALS = r"[\p{sc=Latin}&&\p{N}]"
_BROKEN = 0xFFFD
_SURROGATES = slice(0xD800, 0xE000)
# The second line: emoji style, the keycap, and the letters of flags such as Scotland's. Taken out
# are marks that Unicode counts as pictographs too: © ‼ ↔ ℹ.
_EMOJI = (
    r"[[\p{Emoji_Presentation}\p{Extended_Pictographic}\p{Emoji_Modifier}\p{Regional_Indicator}"
    r"\uFE0F\u20E3\U000E0020-\U000E007F]--[©®™\p{P}\p{Sm}\p{L}]]"
)
_NUMBERS = r"\p{N}"
_MARKS = rf"[[\p{{P}}\p{{S}}]--{_EMOJI}]"


def allowed_characters(policy: GuardPolicy) -> CharacterTable:
    """Code point -> is it allowed? bool [0x110000], read-only."""
    # How characters may be escaped makes no difference here.
    return _allowed(replace(policy, escapes="off"))


@lru_cache(maxsize=16)
def _allowed(policy: GuardPolicy) -> CharacterTable:
    scripts = {script for code in policy.languages for script in LANGUAGES[code].scripts}
    scripts |= {*policy.scripts, *(("Han",) if policy.hanja == "all" else ())}
    # A copy, because `_members` returns the array in its own cache.
    table = _members(letter_set(*sorted(scripts))).copy()
    if policy.languages:
        table |= _members(_LATIN[policy.latin]) | _members(_ROMAN_NUMERALS)
    if policy.hanja == "ksx1001":
        table[[ord(character) for character in hanja_characters(policy.hanja)]] = True
    # The order is that of the rules: each step overrides those before it.
    switches = ((policy.digits, _NUMBERS), (policy.punctuation, _MARKS), (policy.emoji, _EMOJI))
    for kept, members in switches:
        if not kept:
            table &= ~_members(members)
    table[_BROKEN] = False
    table[[ord(character) for character in policy.allow]] = True
    table[_SURROGATES] = False
    # All callers share this cached array: a write would change the policy for everybody.
    table.flags.writeable = False
    return table


@lru_cache(maxsize=32)
def _members(characters: str) -> CharacterTable:
    """The assigned characters of a `regex` set, bool [0x110000]."""
    code_points, text = _assigned()
    table = np.zeros(NUM_CODE_POINTS, np.bool_)
    # One search over a text of all characters is much faster than a match for each of them.
    for run in regex.finditer(rf"(?V1){characters}+", text):
        # One character for each entry of `code_points`, so positions in the text are indices.
        table[code_points[run.start() : run.end()]] = True
    return table


@lru_cache(maxsize=1)
def _assigned() -> tuple[npt.NDArray[np.uint32], str]:
    """All characters except surrogates, private-use and unassigned code points."""
    points = np.arange(NUM_CODE_POINTS, dtype="<u4")
    # Surrogates cannot be decoded, so they go first.
    points = points[(points < 0xD800) | (points >= 0xE000)]
    text = points.tobytes().decode("utf-32-le")
    text = "".join(regex.findall(r"[^\p{Cn}\p{Co}]+", text))
    return np.frombuffer(text.encode("utf-32-le"), dtype="<u4"), text
