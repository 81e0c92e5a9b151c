"""Word lists with frequencies (`wordfreq`), and the language of a text by its frequent words."""

import math
from collections.abc import Mapping, Sequence
from functools import cache

__all__ = ["LANGUAGES", "list_for", "word_list"]

# The languages of each script that wordfreq has, the likeliest first.
LANGUAGES: Mapping[str, Sequence[str]] = {
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
    "Hiragana": ("ja",),
    "Katakana": ("ja",),
    "Hangul": ("ko",),
}
_CENTIBEL = math.log(10) / 100  # in nats; the unit of wordfreq's lists
# How many words of a list, and of the text, are looked at to guess the language.
_GUESS_LIST, _GUESS_WORDS = 300, 2000


def list_for(script: str, words: Sequence[str], japanese: bool) -> Mapping[str, float] | None:
    """The list of the language that the words of one script are in; None if there is no list.

    Of several languages it is the one whose frequent words cover most of the text.
    """
    languages = LANGUAGES.get(script, ())
    # Chinese and Japanese share most characters, so kana nearby decide (see `find_words`).
    if script == "Han":
        return word_list("ja") if japanese else word_list("zh")
    if len(languages) < 2:
        return word_list(languages[0]) if languages else None
    sample = [word.lower() for word in words[:_GUESS_WORDS]]
    known = {language: sum(map(_frequent(language).__contains__, sample)) for language in languages}
    # Of equal counts, `max` takes the first: where no frequent word is known, Latin is English.
    return word_list(max(languages, key=known.__getitem__))


@cache
def _frequent(language: str) -> frozenset[str]:
    words = (word for group in _groups(language) for word in group)
    return frozenset(word for word, _ in zip(words, range(_GUESS_LIST), strict=False))


@cache
def word_list(language: str) -> Mapping[str, float]:
    """The words of a language and their nats: about 30,000 words, 4 MB."""
    groups = enumerate(_groups(language))
    # A group's index is its distance from frequency 1: group 300 has 10^-3, which is 6.9 nats.
    return {word: centibels * _CENTIBEL for centibels, group in groups for word in group}


def _groups(language: str) -> Sequence[Sequence[str]]:
    """Words grouped by frequency, from 1 down, in steps of a centibel."""
    import wordfreq

    path = wordfreq.available_languages("small")[language]
    groups: Sequence[Sequence[str]] = wordfreq.read_cBpack(path)
    return groups
