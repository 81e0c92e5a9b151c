"""Self-information of words: how surprising each is in its language, by lists of words.

A frequent word can mostly be guessed from those around it; a rare word, a name or a number cannot
(Shannon 1948; Li et al. 2023 prune prompts by it, with a whole language model's probabilities).
Frequencies are those of `wordfreq`. The language is guessed for each script of a text: the one
whose frequent words cover most of it. A word that the tokenizer splits is judged as a whole, so
that all its tokens share a score. Writing without spaces is divided into the likeliest words, and
so is Korean, where particles follow their noun. A script without a list is judged by the tokens'
ids, because BPE learns frequent tokens first. This knows nothing of grammar, and not the question.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from unicodedata import is_normalized, normalize

import numpy as np
import numpy.typing as npt
import regex

from vllm_kprune.arrays import Floats
from vllm_kprune.prompt.tokens import IsCancelled, Tokens

__all__ = ["Rarity", "Words", "find_words"]

Integers = npt.NDArray[np.int64]

# Languages by script, of those that wordfreq has; of several the likeliest first.
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
    "Hiragana": ("ja",),
    "Katakana": ("ja",),
    "Hangul": ("ko",),
}
_UNSPACED = ("Han", "Hiragana", "Katakana", "Hangul", "Thai", "Lao", "Khmer", "Myanmar")
_SCRIPTS = tuple(dict.fromkeys([*_LANGUAGES, *_UNSPACED]))
_WORD = regex.compile(
    "(?V1)"
    + "|".join(
        [
            *(rf"(?P<{s}>(?:\p{{{s}}}[\p{{M}}ー]*)+)" for s in _UNSPACED),
            *(
                rf"(?P<{s}>(?:\p{{{s}}}\p{{M}}*+(?:['’](?=\p{{{s}}}))?)+)"
                for s in _SCRIPTS
                if s not in _UNSPACED
            ),
            r"(?P<Letters>(?:\p{L}\p{M}*)+)",
            r"(?P<Number>\p{N}+(?:[.,:/\-–]\p{N}+)*+)",
            r"(?P<Punctuation>[\p{P}--[%‰@#&?？]])",
            r"(?P<Symbol>\S)",
        ]
    )
)
_CHARACTER = regex.compile(r"\X")
_CENTIBEL = math.log(10) / 100  # nats; wordfreq's unit
_UNLISTED_NATS = 16.0  # the lists end at 13.8
_UNLISTED_LETTER_NATS = 12.0  # each further letter, where words have to be found
# Chosen on 10 to 35 passages of English, Chinese and Korean (benchmarks/litepruner_quality.py):
# what ends a sentence may go as early as a frequent word, but "3.5" must not become "35".
_SAME_NATS = {"Number": 14.0, "Symbol": 10.0, "Punctuation": 3.0}
_BLANK_NATS = 5.0
# Frequent, and yet the last to drop: without them a sentence says the opposite.
_NEGATION_NATS = 14.0
_NEGATIONS = frozenset(
    (
        *("not", "no", "never", "none", "nor", "neither", "without", "cannot", "nothing", "nobody"),
        *("nicht", "kein", "keine", "keinen", "nie", "ohne", "ne", "pas", "jamais", "sans", "non"),
        *("nunca", "sin", "não", "nem", "sem", "senza", "tidak", "bukan", "tanpa", "không"),
        *("değil", "inte", "ikke", "ej", "не", "ни", "нет", "без", "لا", "لم", "لن", "ليس"),
        *("غير", "नहीं", "मत", "δεν", "μη", "χωρίς", "לא", "אין", "בלי", "안"),
    )
)
_NEGATION_STARTS = (
    *("않", "없", "못", "아니", "不", "没", "沒", "无", "無", "未", "勿"),
    *("ない", "なく", "ず", "ぬ"),
)
_ZIPF_NATS = math.log(12.0)  # at rank 1, if a vocabulary's frequencies follow Zipf's law
_LONGEST = 8  # characters of a listed word without spaces
_GUESS_LIST, _GUESS_WORDS = 300, 2000  # words of a list, and of the text, to guess the language by
_TIE_NATS = 0.01


class Rarity:
    """Scores that are nats of self-information of the word that a token belongs to."""

    name = "rarity"
    uses_query = False

    def scores(
        self,
        tokens: Tokens,
        *,
        query: str | None = None,
        cancelled: IsCancelled | None = None,
    ) -> npt.NDArray[np.float32]:
        """[tokens] nats. Equal ones differ a little, so that dropped ones are spread evenly."""
        spread = np.arange(len(tokens.ids)) * ((math.sqrt(5) - 1) / 2) % 1
        return (find_words(tokens.text).of_tokens(tokens) + _TIE_NATS * spread).astype(np.float32)


@dataclass(frozen=True, eq=False)
class Words:
    """The words of a text, numbers and marks included, in order.

    `starts` and `ends`: [words] character offsets; `nats`: [words] self-information, NaN where no
    list knows the script.
    """

    starts: Integers
    ends: Integers
    nats: Floats

    def numbers(self, tokens: Tokens) -> tuple[Integers, Integers]:
        """[tokens] number of the first and of the last word that each touches; -1 for blanks."""
        sizes = self.ends - self.starts
        number = np.repeat(np.arange(len(sizes)), sizes)
        inside = np.arange(len(number)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        of_character = np.full(len(tokens.text) + 1, -1, dtype=np.int64)
        of_character[self.starts[number] + inside] = number
        spans = np.asarray(tokens.offsets, dtype=np.int64).reshape(-1, 2)
        begins, lasts = spans[:, 0], np.maximum(spans[:, 1] - 1, spans[:, 0])
        after_blank = np.where(of_character[begins] < 0, np.minimum(begins + 1, lasts), begins)
        return of_character[after_blank], of_character[lasts]

    def of_tokens(self, tokens: Tokens) -> Floats:
        """[tokens] the higher nats of the first and the last word that each touches."""
        first, last = self.numbers(tokens)
        nats = np.append(self.nats, _BLANK_NATS)
        ranks = np.asarray(tokens.ids, dtype=np.float64) + 1
        by_id = np.minimum(np.log(ranks) + _ZIPF_NATS, _UNLISTED_NATS)
        known = np.fmax(nats[first], nats[last])
        return np.where(np.isnan(known), by_id, known)


def find_words(text: str) -> Words:
    """Cut a text into words and look each up in the list of its language.

    A word in decomposed characters (NFD) is looked up as it is composed.
    """
    matches = [(str(m.lastgroup), m.start(), m[0]) for m in _WORD.finditer(text)]
    composed = {} if is_normalized("NFC", text) else _composed({word for _, _, word in matches})
    by_script: dict[str, list[str]] = {}
    for script, _, word in matches:
        by_script.setdefault(script, []).append(composed[word][0] if word in composed else word)
    japanese = 4 * len(by_script.get("Hiragana", ())) > len(by_script.get("Han", ()))
    parts = {
        script: _parts(script, frozenset(words), _list_for(script, words, japanese))
        for script, words in by_script.items()
    }
    for script, word in {(script, word) for script, _, word in matches if word in composed}:
        form, places = composed[word]
        parts[script][word] = [
            (places[begin], places[end], nats)
            for begin, end, nats in parts[script][form]
            if places[begin] < places[end]
        ]
    found = [
        (start + begin, start + end, nats)
        for script, start, word in matches
        for begin, end, nats in parts[script][word]
    ]
    table = np.array(found, dtype=np.float64).reshape(-1, 3)
    return Words(table[:, 0].astype(np.int64), table[:, 1].astype(np.int64), table[:, 2])


def _composed(words: Iterable[str]) -> Mapping[str, tuple[str, Sequence[int]]]:
    """Those that are not in NFC: as they are in it, and its characters' offsets in the word."""
    found: dict[str, tuple[str, Sequence[int]]] = {}
    for word in words:
        if is_normalized("NFC", word):
            continue
        form, places = "", []
        for match in _CHARACTER.finditer(word):
            character = normalize("NFC", match[0])
            form += character
            places += [match.start(), *([match.end()] * (len(character) - 1))]
        found[word] = form, [*places, len(word)]
    return found


_Part = tuple[int, int, float]


def _parts(
    script: str, words: frozenset[str], nats: Mapping[str, float] | None
) -> dict[str, Sequence[_Part]]:
    """Each word's parts, as (begin, end, nats)."""
    if script in _SAME_NATS:
        return {word: [(0, len(word), _SAME_NATS[script])] for word in words}
    if nats is None:
        return {word: [(0, len(word), math.nan)] for word in words}
    if script == "Han" and nats is _nats("zh"):
        found = {word: _likeliest_parts(_simplified(word), nats) for word in words}
    elif script in _UNSPACED:
        found = {word: _likeliest_parts(word, nats) for word in words}
    else:
        found = {word: [(0, len(word), _word_nats(word.lower(), nats))] for word in words}
    return {
        word: [(begin, end, _kept_if_negation(word[begin:end], n)) for begin, end, n in parts]
        for word, parts in found.items()
    }


def _kept_if_negation(part: str, nats: float) -> float:
    part = part.lower()
    negates = part in _NEGATIONS or part.startswith(_NEGATION_STARTS)
    return max(nats, _NEGATION_NATS) if negates or part.endswith(("n't", "n’t")) else nats


def _word_nats(word: str, nats: Mapping[str, float]) -> float:
    """Nats of a word, or of its rarest part where an apostrophe divides it: l'homme, Newton's."""
    if word in nats or ("'" not in word and "’" not in word):
        return nats.get(word, _UNLISTED_NATS)
    word = word.replace("’", "'")
    return nats.get(word) or max(nats.get(part, _UNLISTED_NATS) for part in word.split("'"))


def _likeliest_parts(run: str, nats: Mapping[str, float]) -> Sequence[_Part]:
    """The likeliest division of a run of letters into words, if they were independent."""
    best, cuts = [0.0], [0]
    for end in range(1, len(run) + 1):
        total, cut = math.inf, 0
        for at in range(max(0, end - _LONGEST), end):
            unlisted = _UNLISTED_NATS + (end - at - 1) * _UNLISTED_LETTER_NATS
            through = best[at] + nats.get(run[at:end], unlisted)
            if through < total:
                total, cut = through, at
        best.append(total)
        cuts.append(cut)
    parts = []
    end = len(run)
    while end:
        parts.append((cuts[end], end, nats.get(run[cuts[end] : end], _UNLISTED_NATS)))
        end = cuts[end]
    return parts[::-1]


def _simplified(run: str) -> str:
    """A run of Chinese as the list has it; as long as before."""
    from vllm_kprune.vocabulary.wordlists import simplified_characters

    return run.translate(simplified_characters())


def _list_for(script: str, words: Sequence[str], japanese: bool) -> Mapping[str, float] | None:
    """The list of the language that the words of one script are in; None if there is none."""
    languages = _LANGUAGES.get(script, ())
    if script == "Han":
        return _nats("ja") if japanese else _nats("zh")
    if len(languages) < 2:
        return _nats(languages[0]) if languages else None
    sample = [word.lower() for word in words[:_GUESS_WORDS]]
    known = {language: sum(map(_frequent(language).__contains__, sample)) for language in languages}
    return _nats(max(languages, key=known.__getitem__))


@cache
def _frequent(language: str) -> frozenset[str]:
    words = (word for group in _groups(language) for word in group)
    return frozenset(word for word, _ in zip(words, range(_GUESS_LIST), strict=False))


@cache
def _nats(language: str) -> Mapping[str, float]:
    """Words of a language and their nats: about 30,000 words, 4 MB."""
    groups = enumerate(_groups(language))
    return {word: centibels * _CENTIBEL for centibels, group in groups for word in group}


def _groups(language: str) -> Sequence[Sequence[str]]:
    """Words of each frequency, from 1 down, in steps of a centibel."""
    import wordfreq

    path = wordfreq.available_languages("small")[language]
    groups: Sequence[Sequence[str]] = wordfreq.read_cBpack(path)
    return groups
