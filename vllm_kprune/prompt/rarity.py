"""Self-information of words: how surprising a word is in its language, by word lists.

A frequent word can mostly be guessed from the words around it. A rare word, a name or a number
cannot (Shannon 1948; Li et al. 2023 prune prompts by it, with a language model's probabilities). A
word of frequency p has -ln p nats:

>>> words = find_words("the capital of Peru")
>>> [round(nats, 1) for nats in words.nats.tolist()]
[2.9, 9.2, 3.7, 11.8]

A word that the tokenizer splits is judged as a whole, so its tokens share a score. Writing without
spaces is divided into its likeliest words, and so is Korean, where particles follow the noun. Words
of a script without a list are judged by token id, because BPE learns frequent tokens first.
Grammar and the question are not considered.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from unicodedata import is_normalized, normalize

import numpy as np
import numpy.typing as npt
import regex

from vllm_kprune.arrays import Floats, Integers
from vllm_kprune.prompt.tokens import IsCancelled, Tokens
from vllm_kprune.prompt.word_lists import LANGUAGES, list_for, word_list

__all__ = ["Rarity", "Words", "find_words"]


_UNSPACED = ("Han", "Hiragana", "Katakana", "Hangul", "Thai", "Lao", "Khmer", "Myanmar")
_SCRIPTS = tuple(dict.fromkeys([*LANGUAGES, *_UNSPACED]))
# The first alternative that fits decides, and its name (`lastgroup`) chooses the word list. So
# Letters is only for scripts without a name here.
_WORD = regex.compile(
    "(?V1)"
    + "|".join(
        [
            # ー is named because its script is Common, not Katakana.
            *(rf"(?P<{s}>(?:\p{{{s}}}[\p{{M}}ー]*)+)" for s in _UNSPACED),
            *(
                # An apostrophe is in a word only before another letter: l'homme, not rivers'.
                rf"(?P<{s}>(?:\p{{{s}}}\p{{M}}*+(?:['’](?=\p{{{s}}}))?)+)"
                for s in _SCRIPTS
                if s not in _UNSPACED
            ),
            r"(?P<Letters>(?:\p{L}\p{M}*)+)",
            # 1,230 and 10:30 and 2020-21 are one number each, without the point of a sentence.
            r"(?P<Number>\p{N}+(?:[.,:/\-–]\p{N}+)*+)",
            # The exceptions are left to Symbol, so they go later than a full stop.
            r"(?P<Punctuation>[\p{P}--[%‰@#&?？]])",
            r"(?P<Symbol>\S)",
        ]
    )
)
_CHARACTER = regex.compile(r"\X")
_UNLISTED_NATS = 16.0  # the lists end at 13.8
_UNLISTED_LETTER_NATS = 12.0  # each further letter, where the words of a run have to be found
# Chosen on 10 to 35 passages each of English, Chinese and Korean (litepruner_quality.py in
# benchmarks): the end of a sentence may go as early as a frequent word does.
_SAME_NATS = {"Number": 14.0, "Symbol": 10.0, "Punctuation": 3.0}
_BLANK_NATS = 5.0
# These words are frequent, but without them a sentence says the opposite: they go last.
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
# Zipf's law: of V words, the one of rank r has a frequency of about 1 / (r ln V), and ln V = 12 for
# a vocabulary. So a token with id r has ln r + ln 12 nats.
_ZIPF_NATS = math.log(12.0)
_LONGEST = 8  # characters of a listed word that is written without spaces
_TIE_NATS = 0.01


class Rarity:
    """Scores a token by the self-information, in nats, of the word that it belongs to."""

    name = "rarity"
    uses_query = False

    def scores(
        self,
        tokens: Tokens,
        *,
        query: str | None = None,
        cancelled: IsCancelled | None = None,
    ) -> npt.NDArray[np.float32]:
        """[tokens] nats.

        Up to 0.01 nats are added, so that no two scores are equal. Multiples of the golden ratio,
        modulo 1, are spread evenly, so dropped tokens do not cluster in one part of the text.
        """
        # Equal scores would be dropped from the end of the text on, see `PieceChoice.choose`.
        spread = np.arange(len(tokens.ids)) * ((math.sqrt(5) - 1) / 2) % 1
        return (find_words(tokens.text).of_tokens(tokens) + _TIE_NATS * spread).astype(np.float32)


@dataclass(frozen=True, eq=False)
class Words:
    """The words of a text in order, with numbers and punctuation marks.

    `starts` and `ends`: [words] character offsets. `nats`: [words] self-information; NaN if there
    is no list for the script.
    """

    starts: Integers
    ends: Integers
    nats: Floats

    def numbers(self, tokens: Tokens) -> tuple[Integers, Integers]:
        """[tokens] index of the first and of the last word that each touches; -1 for blanks."""
        # Words at 0-2 and 3-5: sizes 2 2, number 0 0 1 1, inside 0 1 0 1. So of_character is
        # 0 0 -1 1 1 -1; its last entry is for a token that is empty and at the end of the text.
        sizes = self.ends - self.starts
        number = np.repeat(np.arange(len(sizes)), sizes)
        inside = np.arange(len(number)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        of_character = np.full(len(tokens.text) + 1, -1, dtype=np.int64)
        of_character[self.starts[number] + inside] = number
        spans = np.asarray(tokens.offsets, dtype=np.int64).reshape(-1, 2)
        begins, lasts = spans[:, 0], np.maximum(spans[:, 1] - 1, spans[:, 0])
        # A token such as " of" begins with a blank, so its first word is one character later.
        after_blank = np.where(of_character[begins] < 0, np.minimum(begins + 1, lasts), begins)
        return of_character[after_blank], of_character[lasts]

    def of_tokens(self, tokens: Tokens) -> Floats:
        """[tokens] the higher nats of the first and the last word that each touches."""
        first, last = self.numbers(tokens)
        # Trap: index -1, for blanks, is the last entry, _BLANK_NATS.
        nats = np.append(self.nats, _BLANK_NATS)
        ranks = np.asarray(tokens.ids, dtype=np.float64) + 1
        by_id = np.minimum(np.log(ranks) + _ZIPF_NATS, _UNLISTED_NATS)
        # fmax takes the number beside a NaN, where maximum would take the NaN.
        known = np.fmax(nats[first], nats[last])
        return np.where(np.isnan(known), by_id, known)


def find_words(text: str) -> Words:
    """Cut a text into words and look each up in the list of its language.

    A word in decomposed characters (NFD) is looked up in composed form.
    """
    matches = [(str(m.lastgroup), m.start(), m[0]) for m in _WORD.finditer(text)]
    composed = {} if is_normalized("NFC", text) else _composed({word for _, _, word in matches})
    by_script: dict[str, list[str]] = {}
    for script, _, word in matches:
        by_script.setdefault(script, []).append(composed[word][0] if word in composed else word)
    # Counted in runs: from more than one run of hiragana to four of Han, all Han is Japanese.
    japanese = 4 * len(by_script.get("Hiragana", ())) > len(by_script.get("Han", ()))
    parts = {
        script: _parts(script, frozenset(words), list_for(script, words, japanese))
        for script, words in by_script.items()
    }
    for script, word in {(script, word) for script, _, word in matches if word in composed}:
        form, places = composed[word]
        # From offsets in the composed form back to offsets in the text. A part that is empty there
        # belongs to a character that the part before it already has (see `_composed`).
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
    """For words that are not in NFC: their NFC form, and the offsets of its characters in them."""
    found: dict[str, tuple[str, Sequence[int]]] = {}
    for word in words:
        if is_normalized("NFC", word):
            continue
        form, places = "", []
        for match in _CHARACTER.finditer(word):
            character = normalize("NFC", match[0])
            form += character
            # Of a cluster that composes to several characters, the first stands for all of it; the
            # others begin at its end.
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
    # `is` works because `word_list` is cached. Japanese, the other list, keeps its characters.
    if script == "Han" and nats is word_list("zh"):
        found = {word: _likeliest_parts(_simplified(word), nats) for word in words}
    elif script in _UNSPACED:
        found = {word: _likeliest_parts(word, nats) for word in words}
    else:
        found = {word: [(0, len(word), _word_nats(word.lower(), nats))] for word in words}
    # Negations are looked for in the text as it is written: 沒 and 無, not only 没 and 无.
    return {
        word: [(begin, end, _kept_if_negation(word[begin:end], n)) for begin, end, n in parts]
        for word, parts in found.items()
    }


def _kept_if_negation(part: str, nats: float) -> float:
    part = part.lower()
    negates = part in _NEGATIONS or part.startswith(_NEGATION_STARTS)
    return max(nats, _NEGATION_NATS) if negates or part.endswith(("n't", "n’t")) else nats


def _word_nats(word: str, nats: Mapping[str, float]) -> float:
    """Nats of a word, or of its rarest part if an apostrophe divides it: l'homme, Newton's."""
    if word in nats or ("'" not in word and "’" not in word):
        return nats.get(word, _UNLISTED_NATS)
    word = word.replace("’", "'")
    return nats.get(word) or max(nats.get(part, _UNLISTED_NATS) for part in word.split("'"))


def _likeliest_parts(run: str, nats: Mapping[str, float]) -> Sequence[_Part]:
    """Divide a run of letters into its likeliest words, taking words as independent.

    The probability of a division is the product of its words', so its nats are their sum. `best[n]`
    is the lowest sum for the first n letters; `cuts[n]` is where the last of their words begins.
    With ab = 9, a = 5, b = 6 nats, "ab" stays whole (9 < 5 + 6).
    """
    best, cuts = [0.0], [0]
    for end in range(1, len(run) + 1):
        total, cut = math.inf, 0
        for at in range(max(0, end - _LONGEST), end):
            # Without the price of further letters, any 8 letters would be one unlisted word for 16
            # nats, less than two listed words of 9.
            unlisted = _UNLISTED_NATS + (end - at - 1) * _UNLISTED_LETTER_NATS
            through = best[at] + nats.get(run[at:end], unlisted)
            if through < total:
                total, cut = through, at
        best.append(total)
        cuts.append(cut)
    parts = []
    end = len(run)
    # That price was for the choice only: a part that is not listed scores as any unlisted word.
    while end:
        parts.append((cuts[end], end, nats.get(run[cuts[end] : end], _UNLISTED_NATS)))
        end = cuts[end]
    return parts[::-1]


def _simplified(run: str) -> str:
    """A run of Chinese in simplified characters, as in the list. Its length does not change."""
    from vllm_kprune.vocabulary.wordlists import simplified_characters

    return run.translate(simplified_characters())
