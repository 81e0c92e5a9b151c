"""Word lists with frequencies (`wordfreq`), and the language of a text by its frequent words."""

import math
import re
from collections.abc import Mapping, Sequence
from functools import cache, lru_cache
from unicodedata import normalize

__all__ = ["GUESSED", "UNLISTED_NATS", "Languages", "guess", "language_of", "word_list"]

# The languages of each script that wordfreq has, the likeliest first.
_LANGUAGES: Mapping[str, Sequence[str]] = {
    "Latin": (
        *("en", "es", "fr", "de", "pt", "it", "nl", "pl", "id", "vi"),
        *("tr", "sv", "ro", "cs", "da", "nb", "fi", "hu", "ca"),
    ),
    "Cyrillic": ("ru", "uk", "bg"),
    "Arabic": ("ar", "fa", "ur"),
    "Devanagari": ("hi",),
    "Greek": ("el",),
    "Hebrew": ("he",),
    "Bengali": ("bn",),
    "Tamil": ("ta",),
    "Han": ("zh", "ja"),
    "Hangul": ("ko",),
}
_RANGES: Mapping[str, str] = {
    "Latin": "A-Za-z\u00aa\u00ba\u00c0-\u024f\u1e00-\u1eff",
    "Cyrillic": "\u0400-\u052f",
    "Arabic": "\u0600-\u06ff\u0750-\u077f\ufb50-\ufdff\ufe70-\ufeff",
    "Devanagari": "\u0900-\u097f",
    "Greek": "\u0370-\u03ff\u1f00-\u1fff",
    "Hebrew": "\u0590-\u05ff",
    "Bengali": "\u0980-\u09ff",
    "Tamil": "\u0b80-\u0bff",
    "Han": "\u3400-\u4dbf\u4e00-\u9fff",
    "Hangul": "\u1100-\u11ff\u3130-\u318f\uac00-\ud7af",
}
_LETTERS = {script: re.compile(f"[{letters}]") for script, letters in _RANGES.items()}
_WORDS = {
    script: re.compile(f"[{_RANGES[script]}]+(?:['’][{_RANGES[script]}]+)?")
    for script in ("Latin", "Cyrillic", "Arabic")
}
# Letters of the scripts whose language is guessed, Chinese characters left out.
GUESSED = re.compile(f"[{_RANGES['Latin']}{_RANGES['Cyrillic']}{_RANGES['Arabic']}]")
# Letters of other scripts than Latin, and much else.
_OTHER = re.compile("[^\0-\u036f\u1e00-\u1eff\u2000-\u206f]")
_HIRAGANA = re.compile("[\u3041-\u3096]")
UNLISTED_NATS = 16.0  # the lists end at 13.8
_CENTIBEL = math.log(10) / 100  # in nats; the unit of wordfreq's lists
# How many words of a list, and characters of the text, are looked at to guess the language.
_GUESS_LIST, _GUESS_CHARACTERS = 300, 4_000
# English has more than half of its words among the 300, other languages below a sixth. Then the
# other lists need not be read, which takes a fifth of a second.
_SURELY_ENGLISH = 0.35

Languages = tuple[tuple[str, str], ...]
"""The language of each script that has a list, in the order of `_LANGUAGES`."""


def guess(text: str) -> Languages:
    """The likeliest language of each script in a text, by its beginning.

    >>> dict(guess("Der Rhein ist ein Fluss und die Elbe auch."))["Latin"]
    'de'
    """
    sample = normalize("NFC", text[:_GUESS_CHARACTERS])
    latin = not _OTHER.search(sample)
    found = []
    for script, languages in _LANGUAGES.items():
        if latin and script != "Latin":
            found.append((script, languages[0]))
        elif script == "Han":
            # Chinese and Japanese share most characters, so kana nearby decide.
            kana, han = len(_HIRAGANA.findall(sample)), len(_LETTERS["Han"].findall(sample))
            found.append((script, "ja" if 4 * kana > han else "zh"))
        elif len(languages) > 1 and (words := _WORDS[script].findall(sample)):
            found.append((script, _likeliest(list(map(str.lower, words)), languages)))
        else:
            found.append((script, languages[0]))
    return tuple(found)


def _likeliest(words: Sequence[str], languages: Sequence[str]) -> str:
    if languages[0] == "en":
        known = sum(map(_frequent("en").__contains__, words))
        if known > _SURELY_ENGLISH * len(words):
            return "en"
    counts = {one: sum(map(_frequent(one).__contains__, words)) for one in languages}
    # Of equal counts, `max` takes the first: where no frequent word is known, Latin is English.
    return max(counts, key=counts.__getitem__)


def language_of(word: str, languages: Mapping[str, str]) -> str | None:
    """The language of a word by its first letter that has one; None if its script has no list.

    `languages` has that of each script.
    """
    for letter in word:
        if language := languages.get(_script_of(letter)):
            return language
    return None


@lru_cache(maxsize=20_000)
def _script_of(letter: str) -> str:
    """The script of a letter, of those that have lists; empty for another."""
    return next((script for script, letters in _LETTERS.items() if letters.match(letter)), "")


@cache
def _frequent(language: str) -> frozenset[str]:
    words = (word for group in _groups(language) for word in group)
    return frozenset(word for word, _ in zip(words, range(_GUESS_LIST), strict=False))


@cache
def word_list(language: str) -> Mapping[str, float]:
    """The words of a language and their nats: about 30,000 words, 4 MB."""
    nats: dict[str, float] = {}
    # A group's index is its distance from frequency 1: group 300 has 10^-3, which is 6.9 nats.
    for centibels, group in enumerate(_groups(language)):
        nats.update(dict.fromkeys(group, centibels * _CENTIBEL))
    return nats


@cache
def _groups(language: str) -> Sequence[Sequence[str]]:
    """Words grouped by frequency, from 1 down, in steps of a centibel."""
    import wordfreq

    path = wordfreq.available_languages("small")[language]
    groups: Sequence[Sequence[str]] = wordfreq.read_cBpack(path)
    return groups
