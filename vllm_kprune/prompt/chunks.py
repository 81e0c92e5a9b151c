"""Cut chunks of text into their smallest parts, and look each up: its kind, and how surprising.

A word of frequency p has -ln p nats, by the word list of its language. A Korean word is as
surprising as the rarest of its parts. A run of Chinese is divided into its likeliest words. Many
chunks are cut in one call, which makes few objects for each.
"""

import math
import re
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate, pairwise
from typing import NamedTuple
from unicodedata import is_normalized, normalize

import regex

from vllm_kprune.prompt.atoms import atoms
from vllm_kprune.prompt.kinds import chinese_kind
from vllm_kprune.prompt.likeliest import DividedWord, chinese_words, divider, korean_words
from vllm_kprune.prompt.word_lists import UNLISTED_NATS, Languages, language_of, word_list

__all__ = ["EAST", "SOUTH", "Chunk", "cut_chunks", "has_stem"]

# Scripts without spaces: Chinese and Japanese; Thai, Lao, Burmese and Khmer.
EAST = (
    "\u3005-\u3007\u3041-\u309f\u30a1-\u30fa\u30fc-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff"
    "\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff"
)
SOUTH = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"
_EASTERN, _UNSPACED = re.compile(f"[{EAST}]"), re.compile(f"[{EAST}{SOUTH}]")
# Japanese has no spaces and no list of forms: a phrase is taken with the kana that end it.
_BUNSETSU = regex.compile(
    r"[\p{Han}\p{Katakana}\p{M}々ー]*+[\p{Hiragana}\p{M}ー]++|\p{Han}++|.\p{M}*"
)
_RUN = regex.compile(r"\p{Hangul}+|\p{N}+|[\p{L}\p{M}]+")
_SYLLABLES = re.compile("[가-힣]+")
_KANA = regex.compile(r"\p{Hiragana}|\p{Katakana}")
_CHARACTER = regex.compile(r"\X")
_SURE_NATS = 14.0  # numbers and negations
_LEAST_NATS: Mapping[str, float] = {
    **dict.fromkeys(".,()'-", 3.0),
    **dict.fromkeys("os~", 10.0),
    **dict.fromkeys("N4kKDdnZxXVv!", _SURE_NATS),
}
_NO_WORDS = frozenset(".,()'-os~")
_QUESTION_NATS = 10.0
_STEM = 5  # letters that inflection leaves unchanged: rivers, river's -> river


class Chunk(NamedTuple):
    """A piece of text, cut: length, kind and nats of each part, and its words' stems with nats.

    `lengths` are int64, `nats` float64: bytes, because those of many chunks can be joined at once.
    """

    lengths: bytes
    kinds: str
    nats: bytes
    stems: Mapping[str, float]


def cut_chunks(chunks: Sequence[str], languages: Languages) -> Iterator[Chunk]:
    """Cut chunks: what blanks divide, with one blank before it, or a run of a script without."""
    cutter = _Cutter(dict(languages))
    stems, ends = [], [0]
    for chunk in chunks:
        stems.append(cutter.cut(chunk))
        ends.append(len(cutter.lengths))
    # Arrays of Python, which take less time than those of numpy to make of a list.
    lengths, nats = array("q", cutter.lengths).tobytes(), array("d", cutter.nats).tobytes()
    kinds = "".join(cutter.kinds)
    for (a, b), words in zip(pairwise(ends), stems, strict=True):
        yield Chunk(lengths[8 * a : 8 * b], kinds[a:b], nats[8 * a : 8 * b], words)


def has_stem(written: str, stems: Iterable[str]) -> bool:
    """Is one of the stems of a chunk in this part of it, as it is written?

    >>> has_stem("Rivers", ["river"]), has_stem("漢城", ["汉城"])
    (True, True)
    """
    from vllm_kprune.vocabulary.wordlists import simplified_characters

    form = normalize("NFC", written).lower()
    simplified = form.translate(simplified_characters())
    return any(stem in form or stem in simplified for stem in stems)


class _Cutter:
    """Cuts some chunks, by the language of each script.

    `lengths`, `kinds` and `nats` are of all parts so far.
    """

    def __init__(self, languages: Mapping[str, str]) -> None:
        self.lengths: list[int] = []
        self.kinds: list[str] = []
        self.nats: list[float] = []
        self._languages = languages

    def cut(self, chunk: str) -> dict[str, float]:
        """Add the parts of a chunk; returns the stems of its words with their nats."""
        stems: dict[str, float] = {}
        if is_normalized("NFC", chunk):
            self._cut(chunk, stems)
            return stems
        # Words are looked up in composed form, and offsets go back to those in the text.
        form, places = _composed(chunk)
        first = len(self.lengths)
        self._cut(form, stems)
        ends = [places[end] for end in accumulate(self.lengths[first:], initial=0)]
        parts = zip(pairwise(ends), self.kinds[first:], self.nats[first:], strict=True)
        del self.lengths[first:], self.kinds[first:], self.nats[first:]
        for (a, b), kind, nats in parts:
            # Empty: all of a character that composes to several is in the part of its first.
            if a < b:
                self._add(b - a, kind, nats)
        return stems

    def _add(self, length: int, kind: str, nats: float) -> None:
        self.lengths.append(length)
        self.kinds.append(kind)
        self.nats.append(nats)

    def _cut(self, chunk: str, stems: dict[str, float]) -> None:
        if chunk.isspace():
            ends = chunk.count("\n") + 2 * chunk.count("\u2029")
            self._add(len(chunk), "|" if ends > 1 else "\n" if ends else " ", 0.0)
        elif not _UNSPACED.match(chunk):
            if chunk[0] == " ":
                self._add(1, " ", 0.0)
                chunk = chunk[1:]
            for atom, kind in atoms(chunk):
                self._add(len(atom), kind, self._look_up(atom, kind, stems))
        elif _EASTERN.match(chunk):
            cut = self._cut_japanese if self._is_japanese(chunk) else self._cut_chinese
            cut(chunk, stems)
        else:
            # Without a list there is nothing to divide it by, so each character is a part.
            for character in _CHARACTER.findall(chunk):
                self._add(len(character), "c", math.nan)
                stems[character] = math.nan

    def _look_up(self, atom: str, kind: str, stems: dict[str, float]) -> float:
        """The nats of an atom. Adds the stems of its words."""
        least = _LEAST_NATS.get(kind, 0.0)
        if kind in _NO_WORDS:
            return _QUESTION_NATS if atom in "?？" else least
        atom = atom.lower().replace("’", "'")
        if atom.isascii() and atom.isalpha():
            nats = word_list(self._languages["Latin"]).get(atom, UNLISTED_NATS)
            stems[atom[:_STEM]] = nats
            return nats if nats > least else least
        if _SYLLABLES.fullmatch(atom):
            rarest = 0.0
            for word, nats in _korean(atom):
                stems[word[:_STEM]] = nats
                rarest = max(rarest, nats)
            # A listed word may still be divided, where that is likelier.
            return max(word_list("ko").get(atom, rarest), least)
        found = [one for run in _RUN.findall(atom) for one in self._words(run)]
        stems.update([(word[:_STEM], nats) for word, nats in found])
        language = language_of(atom, self._languages)
        whole = word_list(language).get(atom) if language else None
        if whole is None:
            # The rarest of its parts: l'homme, Newton's. NaN if there is no list for it.
            whole = max([nats for _, nats in found if nats == nats], default=math.nan)
        return least if math.isnan(whole) and least else max(whole, least)

    def _words(self, run: str) -> Sequence[DividedWord]:
        """The words of a run of letters or digits, and their nats."""
        language = language_of(run[0], self._languages)
        if language == "ko":
            return _korean(run)
        if language:
            return [(run, word_list(language).get(run, UNLISTED_NATS))]
        return [(run, _SURE_NATS if run[0].isnumeric() else math.nan)]

    def _is_japanese(self, run: str) -> bool:
        return self._languages["Han"] == "ja" or bool(_KANA.search(run))

    def _cut_chinese(self, run: str, stems: dict[str, float]) -> None:
        from vllm_kprune.vocabulary.wordlists import simplified_characters

        parts = divider("zh").divide(run.translate(simplified_characters()))
        end = 0
        for word, nats in chinese_words(parts):
            begin, end = end, end + len(word)
            # Negations are looked for in the text as it is written: 沒 and 無, not only 没 and 无.
            kind = chinese_kind(run[begin:end])
            least = _LEAST_NATS.get(kind, 0.0)
            self._add(end - begin, kind, nats if nats > least else least)
            stems[word[:_STEM]] = nats

    def _cut_japanese(self, run: str, stems: dict[str, float]) -> None:
        phrases = _BUNSETSU.findall(run)
        for phrase in phrases:
            words = divider("ja").divide(phrase)
            self._add(len(phrase), "C", max(nats for _, nats in words))
            stems.update(words)


def _korean(run: str) -> Sequence[DividedWord]:
    return korean_words(divider("ko").divide(run))


def _composed(chunk: str) -> tuple[str, Sequence[int]]:
    """The NFC form of a chunk, and the offsets of its characters in the chunk."""
    form, places = "", []
    for match in _CHARACTER.finditer(chunk):
        character = normalize("NFC", match[0])
        form += character
        # Of a cluster that composes to several characters, the first stands for all of it; the
        # others begin at its end.
        places += [match.start(), *([match.end()] * (len(character) - 1))]
    return form, [*places, len(chunk)]
