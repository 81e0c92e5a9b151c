"""Language profiles: which languages a pruned vocabulary serves, read from checked YAML.

A profile says *what* is wanted (languages, size, options); `vocabulary/` decides which tokens that
means. Unknown keys and values are errors that name the nearest known one. The profiles that ship
with kprune are in `configs/profiles`; a path that ends in .yaml or .yml is a profile of your own.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

from vllm_kprune.errors import KPruneError, nearest
from vllm_kprune.options import REQUIRED, check_values, make, option, options_of, spelled
from vllm_kprune.storage.bounded import Unfit
from vllm_kprune.storage.strict_yaml import read_yaml

__all__ = [
    "LANGUAGES",
    "LANGUAGE_NAMES",
    "MOST_NAMES",
    "Corpus",
    "CorpusOptions",
    "Hanja",
    "Language",
    "Profile",
    "Sizing",
    "UsageFile",
    "as_corpora",
    "each_once",
    "load_profile",
    "nearest_language",
    "parse_profile",
    "shipped_profiles",
]

Hanja = Literal["none", "ksx1001", "all"]


@dataclass(frozen=True)
class Language:
    """One language: its Unicode scripts, and the name of its word list in `wordfreq`."""

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
    # `in` is read as India, and `iw` is the code that Hebrew had before `he`.
    **{"br": "pt", "cn": "zh", "cz": "cs", "gb": "en", "gr": "el", "il": "he", "in": "hi"},
    **{"ir": "fa", "iw": "he", "jp": "ja", "kr": "ko", "mx": "es", "se": "sv", "tw": "zh"},
    **{"ua": "uk", "us": "en", "vn": "vi", "ara": "ar", "ces": "cs", "deu": "de", "ger": "de"},
    **{"ell": "el", "eng": "en", "spa": "es", "fas": "fa", "fra": "fr", "fre": "fr", "heb": "he"},
    **{"hin": "hi", "ind": "id", "ita": "it", "jpn": "ja", "kor": "ko", "nld": "nl", "pol": "pl"},
    **{"por": "pt", "rus": "ru", "swe": "sv", "tha": "th", "tur": "tr", "ukr": "uk", "vie": "vi"},
    **{"zho": "zh", "chi": "zh", "hangul": "ko", "hangeul": "ko", "mandarin": "zh"},
}


def nearest_language(code: str, known: Iterable[str] = LANGUAGES) -> str:
    """A hint to append to "unknown language …": the code that is meant, and all known ones.

    >>> nearest_language("kr")[:32]
    "did you mean 'ko'? (known: ar, c"
    """
    word = code.strip().lower()
    names = {language.name.lower(): code for code, language in LANGUAGES.items()}
    # The first part of a locale: zh_TW and zh-CN both mean zh.
    first = word.replace("_", "-").split("-")[0]
    near = [names[name] for name in get_close_matches(word, names, n=1, cutoff=0.75)]
    known = set(known)
    # What people are known to write comes before what is only spelled alike.
    for meant in (_OTHER_CODES.get(word, ""), _OTHER_CODES.get(first, first), *near):
        if meant in known:
            return f"did you mean '{meant}'? (known: {', '.join(sorted(known))})"
    return f"known: {', '.join(sorted(known))}"


def each_once(key: str, names: tuple[str, ...]) -> tuple[str, ...]:
    """The names of an option, sorted and each once: equal requests must share one automaton."""
    return tuple(sorted(set(names)))


MOST_NAMES = 16
# How an option of the guard takes languages; "off" is None.
LANGUAGE_NAMES: Mapping[str, Any] = {
    "noun": "names with commas between them, or a list",
    "choices": tuple(LANGUAGES),
    "hint": nearest_language,
    "any_case": True,
    "commas": True,
    "least_items": 1,
    "most_items": MOST_NAMES,
    "words": {"off": None},
    "then": each_once,
}


@dataclass(frozen=True, kw_only=True)
class Sizing:
    """How many tokens a profile keeps: at most one of these is given."""

    coverage: float | None = option(
        None,
        "Keep tokens until this share of the evidence is covered, for example 0.999.",
        noun="a share",
        above=0,
        most=1,
        metavar="SHARE",
    )
    min_count: float | None = option(
        None,
        "Keep tokens that occur at least this often per million tokens of the evidence.",
        noun="a finite number",
        least=0,
        forms=["profile"],
    )
    target_size: int | None = option(
        None, "Keep exactly this many tokens.", noun="a number of tokens", least=1, metavar="N"
    )
    max_extra_tokens: float | None = option(
        None,
        "Keep as few tokens as possible while each source of evidence, and each corpus, costs at "
        "most this share of extra tokens, for example 0.01. It is measured, so building takes "
        "longer.",
        noun="a share",
        least=0,
        most=1,
        metavar="SHARE",
    )

    @property
    def sizing(self) -> dict[str, float]:
        """What was given of it, by name: as `load_profile` takes it."""
        values = {one.name: getattr(self, one.name) for one in options_of(Sizing)}
        return {name: value for name, value in values.items() if value is not None}

    def one_sizing(self, prefix: str = "") -> dict[str, float]:
        """`sizing`; `KPruneError` if there are two, in names that begin with `prefix` ("--")."""
        check_sizing(self.sizing, prefix)
        return self.sizing


def check_sizing(names: Iterable[str], prefix: str = "") -> None:
    """Raise `KPruneError` if more than one kind of sizing is among the names of options."""
    known = {one.name for one in options_of(Sizing)}
    if len(given := sorted(known.intersection(names))) > 1:
        both = " and ".join(spelled(prefix, name) for name in given[:2])
        raise KPruneError(f"give one of {both}, not both")


@dataclass(frozen=True)
class UsageFile:
    """A file with what a server answered to `GET /kprune/usage`: counted tokens, no text."""

    path: Path


# The user's own evidence.
Corpus = Path | UsageFile


@dataclass(frozen=True, kw_only=True)
class CorpusOptions:
    """What is measured besides a profile's own evidence."""

    corpus: tuple[Path, ...] = option(
        (),
        "Your own text as evidence, besides the profile's (.txt, .jsonl, also .gz or .zst); there "
        "may be several.",
        metavar="FILE",
        forms=["command", "server"],
    )
    usage: tuple[Path, ...] = option(
        (),
        "Tokens that a server of this model counted in its answers, as evidence besides the "
        "profile's: a file with the answer of its `GET /kprune/usage`; there may be several.",
        metavar="FILE",
        # On a server, `usage` switches the counting on.
        forms={"command": "usage", "server": "usage_file"},
    )

    @property
    def corpora(self) -> tuple[Corpus, ...]:
        """All of it, in the order in which it is counted."""
        return as_corpora(self.corpus, self.usage)


def as_corpora(texts: Iterable[str | Path], usage: Iterable[str | Path] = ()) -> tuple[Corpus, ...]:
    """The user's own evidence of both kinds, from paths."""
    return (*map(Path, texts), *(UsageFile(Path(path)) for path in usage))


@dataclass(frozen=True, kw_only=True)
class Profile(Sizing):
    """A language profile; `parse_profile` makes one from values that nobody has checked."""

    name: str = option(
        REQUIRED,
        "Shown by `kprune inspect` and `GET /kprune`; by default the name of the file.",
        noun="letters, digits, dots and hyphens",
        pattern=r"\w[\w.-]*",
        most=64,
    )
    description: str = option("", "One line for people.", least=0, most=500)
    languages: tuple[str, ...] = option(
        (),
        "ISO 639-1 codes. Without any, every token is kept, as in the profile `original`.",
        noun="a list of language codes",
        choices=tuple(LANGUAGES),
        hint=nearest_language,
        single=False,
    )
    code: bool = option(
        True, "Count source code as evidence, so that programming stays cheap in tokens."
    )
    hanja: Hanja = option(
        "none",
        "Han characters kept for Korean, as single-character tokens: none, the 4,888 of "
        "KS X 1001, or all.",
    )
    drop_unused: bool = option(
        True, "Drop reserved tokens, such as <unused42>, that nothing refers to."
    )

    @property
    def keeps_everything(self) -> bool:
        """True for `original`: no language is named, so nothing is pruned."""
        return not self.languages

    def scripts(self) -> frozenset[str]:
        """Unicode scripts that the profile's languages are written in."""
        return frozenset(s for code in self.languages for s in LANGUAGES[code].scripts)


def _profile_folder() -> Path:
    # A wheel has configs/ inside the package; in a checkout it lies beside it.
    packaged = Path(__file__).parent / "configs" / "profiles"
    return packaged if packaged.is_dir() else Path(__file__).parents[1] / "configs" / "profiles"


def shipped_profiles() -> list[str]:
    """Names of the profiles that come with kprune."""
    return sorted(path.stem for path in _profile_folder().glob("*.yaml"))


def load_profile(name_or_path: str | Path, **overrides: Any) -> Profile:
    """Read a shipped profile by name, or a YAML file by path; `overrides` replace its values.

    Overrides that are None are ignored. One of `Sizing` replaces the profile's own sizing. Raises
    `KPruneError` for anything unknown or out of range.
    """
    path = _resolve(str(name_or_path))
    given = {key: value for key, value in overrides.items() if value is not None}
    # By themselves first: their mistakes are the caller's, and not the file's.
    check_values(options_of(Profile), given, form="profile")
    check_sizing(given)
    values = _read_yaml(path)
    # A profile may hold one kind of sizing only, so its own must leave before another one joins.
    if _SIZING & given.keys():
        values = {key: value for key, value in values.items() if key not in _SIZING}
    # Later entries win: the file's name, what the file says, what the caller says.
    return parse_profile({"name": path.stem, **values, **given}, source=str(path))


_SIZING = frozenset(one.name for one in options_of(Sizing))


def parse_profile(values: Mapping[str, Any], source: str = "profile") -> Profile:
    """Check a mapping and make it a `Profile`; `source` is named in the error."""
    try:
        profile = make(Profile, values, form="profile")
        profile.one_sizing()
    except KPruneError as error:
        raise KPruneError(f"{source}: {error}") from None
    return profile


def _resolve(name: str) -> Path:
    # A bare name is never a path, so a file `enko` in the working folder cannot hide the profile.
    if name.endswith((".yaml", ".yml")) or "/" in name:
        path = Path(name).expanduser()
        try:
            # Raises for a name that is too long, or a folder that may not be entered.
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
        values = read_yaml(path)
    except Unfit as error:
        raise KPruneError(f"{path}: not a readable YAML profile: {error}") from None
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise KPruneError(f"{path}: expected a mapping of keys to values, e.g. languages: [en, ko]")
    return values
