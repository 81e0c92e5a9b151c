"""Language profiles: which languages a pruned vocabulary serves, read from checked YAML.

A profile says *what* is wanted (languages, sizes, options); `vocabulary/` decides which tokens that
means. Unknown keys and values are errors that name the nearest known one. Profiles that ship with
kprune live in `configs/profiles`; a path ending in .yaml or .yml is a profile of the user's own.
"""

from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from vllm_kprune.errors import KPruneError, nearest

__all__ = [
    "LANGUAGES",
    "Language",
    "Profile",
    "load_profile",
    "nearest_language",
    "shipped_profiles",
]

_MAX_BYTES = 1 << 20


class Language(BaseModel):
    """One language: its Unicode scripts, and the name of its word list in `wordfreq`."""

    model_config = ConfigDict(frozen=True)

    name: str
    scripts: tuple[str, ...]
    wordlist: str


def _language(name: str, *scripts: str, wordlist: str = "") -> Language:
    return Language(name=name, scripts=scripts, wordlist=wordlist)


# ISO 639-1 code -> language. `wordlist` is empty where wordfreq has none under the same code.
LANGUAGES: Mapping[str, Language] = {
    "ar": _language("Arabic", "Arabic", wordlist="ar"),
    "cs": _language("Czech", "Latin", wordlist="cs"),
    "de": _language("German", "Latin", wordlist="de"),
    "el": _language("Greek", "Greek", wordlist="el"),
    "en": _language("English", "Latin", wordlist="en"),
    "es": _language("Spanish", "Latin", wordlist="es"),
    "fa": _language("Persian", "Arabic", wordlist="fa"),
    "fr": _language("French", "Latin", wordlist="fr"),
    "he": _language("Hebrew", "Hebrew", wordlist="he"),
    "hi": _language("Hindi", "Devanagari", wordlist="hi"),
    "id": _language("Indonesian", "Latin", wordlist="id"),
    "it": _language("Italian", "Latin", wordlist="it"),
    "ja": _language("Japanese", "Han", "Hiragana", "Katakana", wordlist="ja"),
    "ko": _language("Korean", "Hangul", wordlist="ko"),
    "nl": _language("Dutch", "Latin", wordlist="nl"),
    "pl": _language("Polish", "Latin", wordlist="pl"),
    "pt": _language("Portuguese", "Latin", wordlist="pt"),
    "ru": _language("Russian", "Cyrillic", wordlist="ru"),
    "sv": _language("Swedish", "Latin", wordlist="sv"),
    "th": _language("Thai", "Thai"),
    "tr": _language("Turkish", "Latin", wordlist="tr"),
    "uk": _language("Ukrainian", "Cyrillic", wordlist="uk"),
    "vi": _language("Vietnamese", "Latin", wordlist="vi"),
    "zh": _language("Chinese", "Han", wordlist="zh"),
}


# What people write instead: countries, and the codes of ISO 639-2 and 639-3.
_OTHER_CODES: Mapping[str, str] = {
    **{"br": "pt", "cn": "zh", "cz": "cs", "gb": "en", "gr": "el", "il": "he", "in": "hi"},
    **{"ir": "fa", "iw": "he", "jp": "ja", "kr": "ko", "mx": "es", "se": "sv", "tw": "zh"},
    **{"ua": "uk", "us": "en", "vn": "vi", "ara": "ar", "ces": "cs", "deu": "de", "ger": "de"},
    **{"ell": "el", "eng": "en", "spa": "es", "fas": "fa", "fra": "fr", "fre": "fr", "heb": "he"},
    **{"hin": "hi", "ind": "id", "ita": "it", "jpn": "ja", "kor": "ko", "nld": "nl", "pol": "pl"},
    **{"por": "pt", "rus": "ru", "swe": "sv", "tha": "th", "tur": "tr", "ukr": "uk", "vie": "vi"},
    **{"zho": "zh", "chi": "zh", "hangul": "ko", "hangeul": "ko", "mandarin": "zh"},
}


def nearest_language(code: str) -> str:
    """A hint to append to "unknown language …": the code that is meant, and all known ones.

    >>> nearest_language("kr")[:32]
    "did you mean 'ko'? (known: ar, c"
    """
    word = code.strip().lower()
    names = {language.name.lower(): code for code, language in LANGUAGES.items()}
    first = word.replace("_", "-").split("-")[0]
    near = [names[name] for name in get_close_matches(word, names, n=1, cutoff=0.75)]
    for meant in (_OTHER_CODES.get(word), _OTHER_CODES.get(first, first), *near):
        if meant in LANGUAGES:
            return f"did you mean '{meant}'? (known: {', '.join(sorted(LANGUAGES))})"
    return f"known: {', '.join(sorted(LANGUAGES))}"


class Profile(BaseModel):
    """A language profile. Each field is declared once: its default and its help together."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    name: Annotated[
        str,
        Field(pattern=r"^\w[\w.-]{0,63}$", description="shown by inspect and /kprune"),
    ]
    description: Annotated[str, Field(max_length=500, description="one line for people")] = ""
    languages: Annotated[
        tuple[str, ...],
        Field(strict=False, description="ISO 639-1 codes; empty keeps every token (`original`)"),
    ] = ()
    code: Annotated[
        bool, Field(description="count source code as evidence, so that programming stays cheap")
    ] = True
    hanja: Annotated[
        Literal["none", "ksx1001", "all"],
        Field(description="Han characters kept for Korean, as single-character tokens"),
    ] = "none"
    drop_unused: Annotated[
        bool, Field(description="drop reserved tokens such as <unused42> that nothing refers to")
    ] = True
    coverage: Annotated[
        float | None,
        Field(
            gt=0,
            le=1,
            description="share of the evidence's token occurrences that the kept tokens serve",
        ),
    ] = None
    min_count: Annotated[
        float | None,
        Field(
            ge=0,
            allow_inf_nan=False,
            description="least occurrences per million tokens, as estimated from the evidence",
        ),
    ] = None
    target_size: Annotated[
        int | None, Field(gt=0, description="number of tokens to keep, exactly")
    ] = None
    max_extra_tokens: Annotated[
        float | None,
        Field(
            ge=0,
            le=1,
            description="share of extra tokens that each source of evidence may cost at most",
        ),
    ] = None

    @property
    def keeps_everything(self) -> bool:
        """True for `original`: no language is named, so nothing is pruned."""
        return not self.languages

    def scripts(self) -> frozenset[str]:
        """Unicode scripts that the profile's languages are written in, Latin included."""
        return frozenset(s for code in self.languages for s in LANGUAGES[code].scripts)


def _profile_folder() -> Path:
    packaged = Path(__file__).parent / "configs" / "profiles"
    return packaged if packaged.is_dir() else Path(__file__).parents[1] / "configs" / "profiles"


def shipped_profiles() -> list[str]:
    """Names of the profiles that come with kprune."""
    return sorted(path.stem for path in _profile_folder().glob("*.yaml"))


def load_profile(name_or_path: str | Path, **overrides: Any) -> Profile:
    """Read a shipped profile by name, or a YAML file by path; `overrides` replace its values.

    Overrides that are None are ignored. A sizing override (`coverage`, `max_extra_tokens`,
    `min_count`, `target_size`) replaces the profile's own sizing. Raises `KPruneError` for anything
    unknown or out of range.
    """
    path = _resolve(str(name_or_path))
    values = _read_yaml(path)
    given = {key: value for key, value in overrides.items() if value is not None}
    if _SIZING & given.keys():
        values = {key: value for key, value in values.items() if key not in _SIZING}
    return parse_profile({"name": path.stem, **values, **given}, source=str(path))


_SIZING = frozenset({"coverage", "max_extra_tokens", "min_count", "target_size"})


def parse_profile(values: Mapping[str, Any], source: str = "profile") -> Profile:
    """Check a mapping and make it a `Profile`; `source` is named in the error."""
    for key in values:
        if key not in Profile.model_fields:
            raise KPruneError(
                f"{source}: unknown key '{key}'; {nearest(key, Profile.model_fields)}"
            )
    try:
        profile = Profile.model_validate(dict(values))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "profile"
        raise KPruneError(f"{source}: {where}: {first['msg']} (got {first['input']!r})") from None
    for code in profile.languages:
        if code not in LANGUAGES:
            raise KPruneError(f"{source}: unknown language '{code}'; {nearest_language(code)}")
    sized = [key for key in sorted(_SIZING) if getattr(profile, key) is not None]
    if len(sized) > 1:
        raise KPruneError(f"{source}: give one of {' and '.join(sized)}, not both")
    return profile


def _resolve(name: str) -> Path:
    if name.endswith((".yaml", ".yml")) or "/" in name:
        path = Path(name).expanduser()
        try:
            found = path.is_file()
        except OSError as error:
            raise KPruneError(f"profile file {path}: {error.strerror}") from None
        if not found:
            raise KPruneError(f"profile file {path} does not exist")
        return path
    if name not in shipped_profiles():
        hint = nearest(name, shipped_profiles())
        raise KPruneError(f"unknown profile '{name}'; {hint}; a file of your own ends in .yaml")
    return _profile_folder() / f"{name}.yaml"


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise KPruneError(f"{path}: larger than 1 MiB, which no profile is")
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except KPruneError:
        raise
    # PyYAML lets ValueError out for a date like 2024-99-99, RecursionError for deep nesting.
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise KPruneError(f"{path}: not a readable YAML profile: {reason}") from None
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise KPruneError(f"{path}: expected a mapping of keys to values, e.g. languages: [en, ko]")
    return values
