"""What a request or a server asks the guard for, checked.

Values come from HTTP requests and are hostile: of any type, of any length. Everything unknown is a
`KPruneError` that names what is known. Equal wishes give equal policies, whatever their order.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from vllm_kprune.errors import KPruneError, nearest, shown
from vllm_kprune.profile import LANGUAGES, nearest_language

__all__ = ["OFF", "OPTIONS", "SCRIPTS", "GuardPolicy", "Hanja", "parse_policy", "switch"]

Hanja = Literal["none", "ksx1001", "all"]
OFF = "off"
_MAX_NAMES = 16
_MAX_ALLOWED_CHARACTERS = 256
_MAX_TEXT = 1024

# Scripts in living use: Unicode's recommended and limited-use scripts (UAX #31, tables 5 and 7),
# Mongolian and Braille; and Common, which is digits, punctuation and emoji alone.
SCRIPTS: tuple[str, ...] = (
    *("Adlam", "Arabic", "Armenian", "Balinese", "Bamum", "Batak", "Bengali", "Bopomofo"),
    *("Braille", "Canadian_Aboriginal", "Chakma", "Cham", "Cherokee", "Common", "Cyrillic"),
    *("Devanagari", "Ethiopic", "Georgian", "Greek", "Gujarati", "Gurmukhi", "Han", "Hangul"),
    *("Hanifi_Rohingya", "Hebrew", "Hiragana", "Javanese", "Kannada", "Katakana", "Kayah_Li"),
    *("Khmer", "Lao", "Latin", "Lepcha", "Limbu", "Lisu", "Malayalam", "Mandaic", "Meetei_Mayek"),
    *("Miao", "Mongolian", "Myanmar", "New_Tai_Lue", "Newa", "Nko", "Nyiakeng_Puachue_Hmong"),
    *("Ol_Chiki", "Oriya", "Osage", "Saurashtra", "Sinhala", "Sundanese", "Syloti_Nagri"),
    *("Syriac", "Tai_Le", "Tai_Tham", "Tai_Viet", "Tamil", "Telugu", "Thaana", "Thai"),
    *("Tibetan", "Tifinagh", "Vai", "Wancho", "Yi"),
)


@dataclass(frozen=True)
class GuardPolicy:
    """The characters that may be produced; `guard/characters.py` says which they are.

    `languages` are ISO 639-1 codes, `scripts` Unicode script names, both sorted; `allow` has extra
    characters, sorted. `hanja` adds Han characters: the 4,888 of KS X 1001, or all.
    """

    languages: tuple[str, ...] = ()
    scripts: tuple[str, ...] = ()
    hanja: Hanja = "none"
    allow: str = ""
    digits: bool = True
    punctuation: bool = True
    emoji: bool = True

    @property
    def label(self) -> str:
        """A short name for metrics: "en+ko", "Hangul+hanja"."""
        hanja = ("hanja",) if self.hanja != "none" else ()
        return "+".join((*self.languages, *self.scripts, *hanja))


def parse_policy(
    options: Mapping[str, object], default: GuardPolicy | None = None
) -> GuardPolicy | None:
    """Check a request's options (keys of `OPTIONS`); None means that the guard is off.

    `languages` and `scripts` belong together: a request that gives either replaces both of the
    default's. What else is not given is the default's. `languages="off"` goes alone.
    Raises `KPruneError` for anything unknown, empty, too long or of a wrong type.
    """
    for key in options:
        if key not in OPTIONS:
            raise KPruneError(f"unknown option {shown(key)}; {nearest(str(key)[:64], OPTIONS)}")
    if not options:
        return default
    if _is_off(options.get("languages")):
        if len(options) > 1:
            raise KPruneError("languages is 'off': leave the other options of the guard out")
        return None
    given: dict[str, Any] = {key: OPTIONS[key](key, value) for key, value in options.items()}
    if "languages" in given or "scripts" in given:
        given = {"languages": (), "scripts": ()} | given
    elif default is None:
        raise KPruneError(
            f"{shown(next(iter(options)))} without languages or scripts, and this server has no "
            f"default: give languages (known: {', '.join(LANGUAGES)}) or scripts"
        )
    return GuardPolicy(**(vars(default or GuardPolicy()) | given))


def _is_off(value: object) -> bool:
    return isinstance(value, str) and value.strip().lower() == OFF


def _names(key: str, value: object, known: Iterable[str]) -> tuple[str, ...]:
    """Names in a comma-separated text or a list of texts, in any case; sorted, each once."""
    if isinstance(value, str) and len(value) <= _MAX_TEXT:
        value = value.split(",")
    if not isinstance(value, list | tuple) or not all(isinstance(n, str) for n in value):
        raise KPruneError(
            f"{key}: got {shown(value)}, expected names with commas between them, or a list"
        )
    if len(value) > _MAX_NAMES:
        raise KPruneError(f"{key}: got {len(value)} names, at most {_MAX_NAMES} are taken")
    spelled = {name.lower(): name for name in known}
    wanted = {name.strip()[:64] for name in value} - {""}
    if not wanted:
        raise KPruneError(f"{key}: empty; known: {', '.join(sorted(known))}")
    for name in sorted(wanted):
        if name.lower() not in spelled:
            hint = nearest_language(name) if known is LANGUAGES else nearest(name, known)
            raise KPruneError(f"{key}: unknown {shown(name)}; {hint}")
    return tuple(sorted({spelled[name.lower()] for name in wanted}))


def _languages(key: str, value: object) -> tuple[str, ...]:
    return _names(key, value, LANGUAGES)


def _scripts(key: str, value: object) -> tuple[str, ...]:
    return _names(key, value, SCRIPTS)


def _hanja(key: str, value: object) -> str:
    if isinstance(value, str) and value in get_args(Hanja):
        return value
    raise KPruneError(f"{key}: got {shown(value)}, expected none, ksx1001 or all")


def _characters(key: str, value: object) -> str:
    if not isinstance(value, str):
        raise KPruneError(f"{key}: got {shown(value)}, expected a text of extra characters")
    if len(value) > _MAX_ALLOWED_CHARACTERS:
        raise KPruneError(
            f"{key}: got {len(value)} characters, at most {_MAX_ALLOWED_CHARACTERS} are taken; "
            "a whole script is better named in scripts"
        )
    if any(0xD800 <= ord(character) < 0xE000 for character in value):
        raise KPruneError(f"{key}: got half a surrogate pair, expected whole characters")
    return "".join(sorted(set(value)))


def switch(key: str, value: object) -> bool:
    """`value` as true or false, if it says so; `key` is for the error."""
    word = value.strip().lower() if isinstance(value, str) else value
    # `in` would take 1.0 for 1, and compare a list with everything.
    for wanted, words in ((True, (True, 1, "true", "on")), (False, (False, 0, "false", "off"))):
        if isinstance(word, bool | int | str) and word in words:
            return wanted
    raise KPruneError(f"{key}: got {shown(value)}, expected true or false")


OPTIONS: Mapping[str, Callable[[str, object], object]] = {
    "languages": _languages,
    "scripts": _scripts,
    "hanja": _hanja,
    "allow": _characters,
    "digits": switch,
    "punctuation": switch,
    "emoji": switch,
}
