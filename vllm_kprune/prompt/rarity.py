"""Self-information of words: how surprising each is in its language, from word lists.

A frequent word can mostly be guessed from those around it; a rare one, a name or a number cannot.
Frequencies are those of `wordfreq`. The language is guessed for each script of a text, as the one
whose list explains the text's words best. A word that the tokenizer splits is judged as a whole,
so that all its tokens share a score; in scripts without spaces, and in Korean, where particles are
tokens of their own, each token is judged by itself. What no list knows counts as rare.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt
import regex

from vllm_kprune.prompt.scorers import Tokens

__all__ = ["Rarity", "Words", "find_words"]

Floats = npt.NDArray[np.float64]

# Languages that share a script, the likeliest first: of those that wordfreq has.
_LANGUAGES: Mapping[str, tuple[str, ...]] = {
    "Latin": ("en", "es", "fr", "de", "pt", "it", "nl", "pl", "id", "vi", "tr", "sv", "ro", "cs"),
    "Han": ("zh", "ja"),
    "Hangul": ("ko",),
    "Hiragana": ("ja",),
    "Katakana": ("ja",),
    "Cyrillic": ("ru", "uk", "bg"),
    "Arabic": ("ar", "fa", "ur"),
    "Devanagari": ("hi",),
    "Greek": ("el",),
    "Hebrew": ("he",),
    "Bengali": ("bn",),
    "Tamil": ("ta",),
}
_UNSPACED = ("Han", "Hiragana", "Katakana", "Hangul", "Thai", "Lao", "Khmer", "Myanmar")
_LETTERS = "|".join(
    rf"(?P<{name}>(?:\p{{{name}}}[\p{{M}}\u30fc]*)+)" for name in [*_UNSPACED, "Latin", "Cyrillic"]
)
_WORD = regex.compile(
    rf"{_LETTERS}|(?P<Other>(?:\p{{L}}\p{{M}}*)+)|(?P<Number>\p{{N}}+)|(?P<Mark>\S)"
)
_UNKNOWN_NATS = 16.0
_NUMBER_NATS = 14.0
_MARK_NATS = 6.0
_BLANK_NATS = 5.0
_GUESS_WORDS = 300  # of each list, to guess the language by
_LONGEST = 8  # characters of a word without spaces


class Rarity:
    """Scores that are nats of self-information of the word that a token belongs to."""

    name = "rarity"

    def scores(
        self,
        tokens: Tokens,
        *,
        query: str | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> npt.NDArray[np.float32]:
        """[tokens] nats."""
        return find_words(tokens.text).of_tokens(tokens).astype(np.float32)


@dataclass(frozen=True, eq=False)
class Words:
    """The words of a text, numbers and marks included, in order.

    `starts` and `ends`: [words] character offsets; `nats`: [words] self-information; `keys`:
    [words] what they are in lower case.
    """

    starts: npt.NDArray[np.int64]
    ends: npt.NDArray[np.int64]
    nats: Floats
    keys: Sequence[str]

    def numbers(self, tokens: Tokens) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """[tokens] number of the first and of the last word that each touches; -1 for blanks."""
        of_character = np.full(len(tokens.text) + 1, -1)
        for number, (start, end) in enumerate(zip(self.starts, self.ends, strict=True)):
            of_character[start:end] = number
        spans = np.asarray(tokens.offsets, dtype=np.int64).reshape(-1, 2)
        begins, lasts = spans[:, 0], np.maximum(spans[:, 1] - 1, spans[:, 0])
        blank = of_character[begins] < 0
        return of_character[np.where(blank, np.minimum(begins + 1, lasts), begins)], of_character[
            lasts
        ]

    def of_tokens(self, tokens: Tokens) -> Floats:
        """[tokens] the higher nats of the first and the last word that each touches."""
        first, last = self.numbers(tokens)
        nats = np.append(self.nats, _BLANK_NATS)
        return np.asarray(np.maximum(nats[first], nats[last]))


def find_words(text: str) -> Words:
    """Cut a text into words and look each up in the list of its language."""
    matches = [(str(m.lastgroup), m.start(), m[0].lower()) for m in _WORD.finditer(text)]
    by_script: dict[str, list[str]] = {}
    for script, _, word in matches:
        by_script.setdefault(script, []).append(word)
    lists = {script: _list_for(script, words) for script, words in by_script.items()}
    found = [
        (start + begin, start + end, nats, word[begin:end])
        for script, start, word in matches
        for begin, end, nats in _parts(script, word, lists[script])
    ]
    starts, ends, nats, keys = zip(*found, strict=True) if found else ((), (), (), ())
    return Words(
        np.array(starts, dtype=np.int64), np.array(ends, dtype=np.int64), np.array(nats), keys
    )


def _parts(script: str, word: str, nats: Mapping[str, float]) -> Sequence[tuple[int, int, float]]:
    if script == "Number":
        return [(0, len(word), _NUMBER_NATS)]
    if script == "Mark":
        return [(0, len(word), _MARK_NATS)]
    if script in _UNSPACED:
        return _likeliest_parts(word, nats)
    return [(0, len(word), nats.get(word, _UNKNOWN_NATS))]


def _likeliest_parts(run: str, nats: Mapping[str, float]) -> Sequence[tuple[int, int, float]]:
    """The likeliest division of a run of letters into words, taken as independent."""
    best = [0.0]
    cut = [0]
    for end in range(1, len(run) + 1):
        options = [
            (best[at] + nats.get(run[at:end], _UNKNOWN_NATS + (end - at - 1) * 12), at)
            for at in range(max(0, end - _LONGEST), end)
        ]
        total, at = min(options)
        best.append(total)
        cut.append(at)
    parts = []
    end = len(run)
    while end:
        begin = cut[end]
        parts.append((begin, end, nats.get(run[begin:end], _UNKNOWN_NATS)))
        end = begin
    return parts[::-1]


def _list_for(script: str, words: Sequence[str]) -> Mapping[str, float]:
    """The list of the language that the words of one script are of; empty if there is none."""
    if script == "Other":
        script = next((s for s in _OTHERS if regex.match(rf"\p{{{s}}}", words[0])), script)
    languages = _LANGUAGES.get(script, ())
    if len(languages) > 1:
        known = {lang: sum(word in _frequent(lang) for word in words[:2000]) for lang in languages}
        return _nats(max(languages, key=known.__getitem__))
    return _nats(languages[0]) if languages else {}


_OTHERS = ("Arabic", "Devanagari", "Greek", "Hebrew", "Bengali", "Tamil")


@cache
def _frequent(language: str) -> frozenset[str]:
    return frozenset(list(_nats(language))[:_GUESS_WORDS])


@cache
def _nats(language: str) -> Mapping[str, float]:
    """Words of a language, frequent ones first, and their nats."""
    import wordfreq

    frequencies = wordfreq.get_frequency_dict(language, wordlist="small")
    return {word: -math.log(frequency) for word, frequency in frequencies.items()}
