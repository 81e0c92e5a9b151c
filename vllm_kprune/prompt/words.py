"""Cut a text into its smallest parts, and look each up: its kind, and how surprising it is.

A frequent word can mostly be guessed from the words around it. A rare word, a name or a number
cannot (Shannon 1948; Li et al. 2023 prune prompts by it, with a language model's probabilities). A
word of frequency p has -ln p nats, by the word list of its language.

A Korean word is as surprising as the rarest of its parts. A run of Chinese is divided into its
likeliest words. A text is cut chunk by chunk (what blanks divide, or a run of a script without
spaces), and a `Lexicon` remembers the chunks that it has cut.

>>> found = read("the capital of Peru (2019)")
>>> [found.text[a:b] for a, b in zip(found.starts, found.ends)]
['the', ' ', 'capital', ' ', 'of', ' ', 'Peru', ' ', '(', '2019', ')']
>>> found.kinds, [round(nats, 1) for nats in found.nats.tolist()[:7:2]]
('f w f W (4)', [2.9, 9.2, 3.7, 11.8])
"""

import math
import re
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from operator import sub
from unicodedata import is_normalized, normalize

import numpy as np
import regex

from vllm_kprune.arrays import Floats, Integers
from vllm_kprune.prompt.atoms import atoms
from vllm_kprune.prompt.kinds import chinese_kind
from vllm_kprune.prompt.likeliest import chinese_words, korean_words, likeliest_parts
from vllm_kprune.prompt.word_lists import (
    UNLISTED_NATS,
    Languages,
    guess,
    language_of,
    prefixes,
    word_list,
)

__all__ = ["Chunk", "Lexicon", "Words", "read"]

# Scripts without spaces: Chinese and Japanese; Thai, Lao, Burmese and Khmer.
_EAST = (
    "\u3005-\u3007\u3041-\u309f\u30a1-\u30fa\u30fc-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff"
    "\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff"
)
_SOUTH = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"
# A chunk takes one blank before it along: most have one, and one look-up takes less time than two.
# At most 1,000 characters, because some searches in a chunk take the square of its length.
_CHUNK = re.compile(
    rf" ?[^\s{_EAST}{_SOUTH}]{{1,1000}}|[{_EAST}]{{1,1000}}|[{_SOUTH}]{{1,1000}}|\s+"
)
_EASTERN, _SOUTHERN = re.compile(f"[{_EAST}]"), re.compile(f"[{_SOUTH}]")
# Japanese has no spaces and no list of forms: a phrase is taken with the kana that end it.
_BUNSETSU = regex.compile(
    r"[\p{Han}\p{Katakana}\p{M}々ー]*+[\p{Hiragana}\p{M}ー]++|\p{Han}++|.\p{M}*"
)
_RUN = regex.compile(r"\p{Hangul}+|\p{N}+|[\p{L}\p{M}]+")
_KANA = regex.compile(r"\p{Hiragana}|\p{Katakana}")
_CHARACTER = regex.compile(r"\X")
_SURE_NATS = 14.0  # numbers and negations
_LEAST_NATS: Mapping[str, float] = {
    **dict.fromkeys(".,()'-", 3.0),
    **dict.fromkeys("os~", 10.0),
    **dict.fromkeys("N4kKDdnZxXVv!", _SURE_NATS),
}
_QUESTION_NATS = 10.0
_STEM = 5  # letters that inflection leaves unchanged: rivers, river's -> river
_MOST_CHUNKS, _LONGEST_REMEMBERED = 100_000, 48

_Part = tuple[int, int, str, float, Sequence[tuple[str, float]]]
"""Begin, end, kind, nats, and the stems of its words with their nats."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of text, cut: length, kind and nats of each part, and its words' stems with nats.

    `lengths` are int64, `nats` float64: bytes, because those of many chunks can be joined at once.
    """

    lengths: bytes
    kinds: str
    nats: bytes
    stems: Mapping[str, float]


@dataclass(frozen=True, eq=False)
class Words:
    """The parts of a text, in order; together they are the whole text.

    `starts` and `ends`: [parts] character offsets. `kinds`: a character for each part, see `kinds`.
    `nats`: [parts] self-information; NaN if there is no list for the script. `chunks`: those that
    the parts are of, in order.
    """

    text: str
    starts: Integers
    ends: Integers
    kinds: str
    nats: Floats
    chunks: Sequence[Chunk]


def read(text: str) -> Words:
    """Cut a text, with the word lists of its languages."""
    chunks = _lexicon(guess(text)).chunks(text)
    lengths = np.frombuffer(b"".join([c.lengths for c in chunks]), np.int64)
    nats = np.frombuffer(b"".join([c.nats for c in chunks]), np.float64)
    ends = np.cumsum(lengths)
    return Words(text, ends - lengths, ends, "".join([c.kinds for c in chunks]), nats, chunks)


@lru_cache(maxsize=64)
def _lexicon(languages: Languages) -> "Lexicon":
    return Lexicon(languages)


class Lexicon:
    """Cuts chunks by the word lists of some languages, and remembers those that it has cut."""

    def __init__(self, languages: Languages) -> None:
        self._languages = languages
        self._by_script = dict(languages)
        self._known: dict[str, Chunk] = {}

    def chunks(self, text: str) -> list[Chunk]:
        """The chunks of a text, in order."""
        texts = _CHUNK.findall(text)
        found = list(map(self._known.get, texts))
        return [one or self._add(chunk) for one, chunk in zip(found, texts, strict=True)]

    def _add(self, chunk: str) -> Chunk:
        # It may stand earlier in the same text.
        if known := self._known.get(chunk):
            return known
        cut = _chunk(self._cut(chunk))
        if len(chunk) <= _LONGEST_REMEMBERED:
            # Emptied at once, which is simpler than to forget the oldest.
            if len(self._known) >= _MOST_CHUNKS:
                self._known.clear()
            self._known[chunk] = cut
        return cut

    def _cut(self, chunk: str) -> Iterator[_Part]:
        if is_normalized("NFC", chunk):
            yield from self._parts(chunk)
            return
        # Words are looked up in composed form, and offsets go back to those in the text.
        form, places = _composed(chunk)
        for begin, end, *rest in self._parts(form):
            # Empty: all of a character that composes to several is in the part of its first.
            if places[begin] < places[end]:
                yield places[begin], places[end], *rest  # type: ignore[misc]

    def _parts(self, chunk: str) -> Iterator[_Part]:
        if chunk.isspace():
            ends = chunk.count("\n") + 2 * chunk.count("\u2029")
            yield 0, len(chunk), "|" if ends > 1 else "\n" if ends else " ", 0.0, ()
        elif _EASTERN.match(chunk):
            yield from (
                self._japanese(chunk)
                if self._by_script["Han"] == "ja" or _KANA.search(chunk)
                else self._chinese(chunk)
            )
        elif _SOUTHERN.match(chunk):
            # Without a list there is nothing to divide it by, so each character is a part.
            for match in _CHARACTER.finditer(chunk):
                yield match.start(), match.end(), "c", math.nan, ((match[0], math.nan),)
        else:
            blank = chunk[0] == " "
            if blank:
                yield 0, 1, " ", 0.0, ()
            for begin, end, kind in atoms(chunk[blank:]):
                nats, stems = self._look_up(chunk[begin + blank : end + blank], kind)
                yield begin + blank, end + blank, kind, nats, stems

    def _look_up(self, atom: str, kind: str) -> tuple[float, Sequence[tuple[str, float]]]:
        """The nats of an atom, and the stems of its words."""
        least = _LEAST_NATS.get(kind, 0.0)
        if kind in ".,()'-os~":
            return (_QUESTION_NATS if atom in "?？" else least), ()
        atom = atom.lower().replace("’", "'")
        # Words of one script are a run, and need no search.
        one_run = atom.isalpha() and (atom.isascii() or "가" <= min(atom) <= max(atom) <= "힣")
        runs = [atom] if one_run else _RUN.findall(atom)
        found = [one for run in runs for one in self._words(run)]
        stems = [(word[:_STEM], nats) for word, nats in found]
        language = language_of(atom, self._languages)
        whole = word_list(language).get(atom) if language else None
        if whole is None:
            # The rarest of its parts: l'homme, Newton's. NaN if there is no list for it.
            whole = max([nats for _, nats in found if nats == nats], default=math.nan)
        return (least if math.isnan(whole) and least else max(whole, least)), stems

    def _words(self, run: str) -> Iterator[tuple[str, float]]:
        """The words of a run of letters or digits, and their nats."""
        language = language_of(run[0], self._languages)
        if language == "ko":
            yield from korean_words(run)
        elif language:
            yield run, word_list(language).get(run, UNLISTED_NATS)
        else:
            yield run, _SURE_NATS if run[0].isnumeric() else math.nan

    def _chinese(self, run: str) -> Iterator[_Part]:
        from vllm_kprune.vocabulary.wordlists import simplified_characters

        simple = run.translate(simplified_characters())
        for begin, end, nats in chinese_words(simple):
            # Negations are looked for in the text as it is written: 沒 and 無, not only 没 and 无.
            kind = chinese_kind(run[begin:end])
            word = simple[begin:end]
            stems = ((word[:_STEM], nats),)
            yield begin, end, kind, max(nats, _LEAST_NATS.get(kind, 0.0)), stems

    def _japanese(self, run: str) -> Iterator[_Part]:
        nats = word_list("ja")
        for match in _BUNSETSU.finditer(run):
            found = likeliest_parts(match[0], nats, prefixes("ja"))
            stems = [(match[0][a:b], value) for a, b, value in found]
            yield match.start(), match.end(), "C", max(value for *_, value in found), stems


def _chunk(parts: Iterator[_Part]) -> Chunk:
    begins, ends, kinds, nats, stems = zip(*parts, strict=True)
    # Arrays of Python, which take far less time for a few numbers than those of numpy.
    lengths = array("q", map(sub, ends, begins)).tobytes()
    return Chunk(
        lengths, "".join(kinds), array("d", nats).tobytes(), dict(chain.from_iterable(stems))
    )


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
