"""What a request or a server asks the guard for, checked.

Values come from HTTP requests and are hostile: of any type, of any length. Everything unknown is a
`KPruneError` that names what is known. Equal requests give equal policies, whatever their order.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from vllm_kprune.errors import KPruneError
from vllm_kprune.options import check_values, option, options_of
from vllm_kprune.profile import LANGUAGE_NAMES, LANGUAGES, MOST_NAMES, Hanja, each_once

__all__ = ["SCRIPTS", "EscapeRule", "GuardPolicy", "Latin", "parse_policy"]

EscapeRule = Literal["auto", "json", "off"]
Latin = Literal["ascii", "european", "all"]
_SERVER_TOO = ("request", "server")

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


def _characters(key: str, text: str) -> str:
    if any(0xD800 <= ord(character) < 0xE000 for character in text):
        raise KPruneError(f"{key}: got half a surrogate pair, expected whole characters")
    return "".join(sorted(set(text)))


@dataclass(frozen=True)
class GuardPolicy:
    """The characters that may be produced; `guard/characters.py` says which they are.

    `languages`, `scripts` and the characters of `allow` are sorted, each once.
    """

    languages: tuple[str, ...] = option(
        (),
        "Guard answers: no character outside the scripts of these languages (ISO 639-1) is ever "
        "produced, on any model, pruned or not; off: no guard.",
        **LANGUAGE_NAMES,
        metavar="ko,en",
        forms=_SERVER_TOO,
    )
    scripts: tuple[str, ...] = option(
        (),
        "Guard answers by Unicode scripts, instead of languages or in addition to them.",
        noun="names with commas between them, or a list",
        choices=SCRIPTS,
        any_case=True,
        commas=True,
        least_items=1,
        most_items=MOST_NAMES,
        then=each_once,
        metavar="Hangul,Latin",
        forms=_SERVER_TOO,
    )
    hanja: Hanja = option(
        "none",
        "Han characters that the guard allows as well: none, the 4,888 of KS X 1001, or all.",
        forms=_SERVER_TOO,
    )
    allow: str = option(
        "",
        "Characters that the guard allows whatever their script is, such as αβπ.",
        least=0,
        most=256,
        then=_characters,
        metavar="CHARACTERS",
        forms=_SERVER_TOO,
    )
    digits: bool = option(True, "Allow digits.", forms=["request"])
    punctuation: bool = option(True, "Allow punctuation and symbols.", forms=["request"])
    emoji: bool = option(True, "Allow emoji.", forms=["request"])
    escapes: EscapeRule = option(
        "auto",
        "Escapes in the answer: with json, \\u is refused, because it could spell any character; "
        "auto: json where the answer is JSON (response_format, tool calls), otherwise off.",
        forms=_SERVER_TOO,
    )
    latin: Latin = option(
        "european",
        "Latin letters that languages of other scripts may use, for names and loan words: A to Z "
        "only (ascii), those of European alphabets as well (é, ß, ł), or all.",
        forms=_SERVER_TOO,
    )

    @property
    def label(self) -> str:
        """A short name for metrics: "en+ko", "Hangul+hanja"."""
        hanja = ("hanja",) if self.hanja != "none" else ()
        return "+".join((*self.languages, *self.scripts, *hanja))


def parse_policy(
    options: Mapping[Any, object],
    default: GuardPolicy | None = None,
    *,
    form: str = "request",
    prefix: str = "",
) -> GuardPolicy | None:
    """Check options, named as in `form` of `GuardPolicy`; None means that the guard is off.

    `languages` and `scripts` belong together: a request that gives either replaces both of the
    default's. What else is not given is the default's. `languages="off"` goes alone. `prefix`
    is how options begin in errors.
    Raises `KPruneError` for anything unknown, empty, too long or of a wrong type.
    """
    known = options_of(GuardPolicy, form)
    given = check_values(known, options, form=form, prefix=prefix, text=form == "request")
    if not given:
        return default
    # `words` has turned "off" into None.
    if given.get("languages", ()) is None:
        if len(given) > 1:
            raise KPruneError("languages is 'off': leave the other options of the guard out")
        return None
    # Both are emptied first: a request for scripts must not get the server's languages as well.
    if "languages" in given or "scripts" in given:
        given = {"languages": (), "scripts": ()} | given
    elif default is None:
        raise KPruneError(
            f"{prefix}{next(iter(given))} without languages or scripts, and this server has no "
            f"default: give languages (known: {', '.join(LANGUAGES)}) or scripts"
        )
    return GuardPolicy(**(vars(default or GuardPolicy()) | given))
