"""Find what is wrong with an answer, and where: language, words, characters, loops.

Lines and words are judged as in Marchisio et al. (2024), with these differences. Code (fenced or
between backticks), URLs and e-mail addresses are not judged. In scripts without spaces, two
characters count as one word, so that a Chinese line in a Korean answer is long enough to be judged.
English words are also found next to Korean particles ("test를"), and come from wordfreq's list
instead of a Unix dictionary. As in the paper, words of fewer than four letters and words with a
capital are not judged, since they are names, acronyms, units and titles.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt
import regex
import wordfreq

from vllm_kprune.compare.measurements import Span
from vllm_kprune.guard.characters import allowed_characters
from vllm_kprune.guard.policy import GuardPolicy
from vllm_kprune.profile import LANGUAGES

__all__ = ["Checks", "Findings", "find_loop", "has_own_script"]

_MIN_WORDS = 5
_MOST_IDENTIFIED = 4000  # characters of a text whose language is identified as a whole
_MIN_LETTERS = 4
_MIN_ZIPF = 3.0  # at least one in a million words
_BROKEN = "\ufffd"
_UNJUDGED = regex.compile(
    r"```.*?(?:```|\Z)|`[^`\n]+`|https?://\S+|\S+@\S+\.\w+|www\.\S+", regex.DOTALL
)
_UNSPACED = regex.compile(r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]")
# (?V1) allows `--`, the difference of two sets.
_SPACED_WORD = regex.compile(r"(?V1)[\p{L}\p{M}--[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}]]+")
_LATIN_WORD = regex.compile(r"\p{Latin}+")
_LOOP_TAIL = 4000  # characters at the end that are searched
_LOOP_TIMES = 5
_LOOP_CHARACTERS = 40
_WORD_CHARACTER = regex.compile(r"[\p{L}\p{N}]")


@dataclass(frozen=True)
class Findings:
    """The findings for one answer.

    `lines` and `words` say whether they passed, or are None if there was nothing to judge: no line
    of five words; for words also a language in Latin letters, or a line in the wrong language.
    """

    lines: bool | None
    words: bool | None
    foreign: bool
    loop: bool
    broken: bool
    spans: tuple[Span, ...]


@dataclass(frozen=True)
class Checks:
    """Judges answers; `identify` returns the language of a line (ISO 639-1, or anything else)."""

    identify: Callable[[str], str]

    def __call__(
        self,
        text: str,
        language: str,
        *,
        prompt: str = "",
        asked: str | None = None,
        cut: bool = False,
    ) -> Findings:
        """Judge an answer that should be in `language`.

        Characters of the language of the prompt (`asked`) and characters that occur in the prompt
        are not foreign. An answer that was `cut` may end inside a character.
        """
        # Blanked, not cut out: positions must remain those of `text`, where spans are highlighted.
        judged = _UNJUDGED.sub(lambda found: " " * len(found[0]), text)
        lines = list(_lines(judged))
        wrong = [span for span in lines if self.identify(judged[slice(*span)]) != language]
        lines_pass = not wrong if lines else None
        english = list(_english(judged, lines)) if lines_pass and has_own_script(language) else None
        foreign = list(_foreign(judged, {language, asked or language}, prompt))
        broken = [found.span() for found in regex.finditer(f"{_BROKEN}+", text)]
        # The limit of tokens ended the answer inside a character, which is no flaw of the model.
        if cut and broken and broken[-1][1] == len(text):
            broken.pop()
        loop = find_loop(text)
        marked = (
            (wrong, f"not {LANGUAGES[language].name}"),
            (english or (), "an English word"),
            (foreign, "a character of another script"),
            (broken, "invalid UTF-8"),
            ([loop] if loop else (), "a loop"),
        )
        return Findings(
            lines=lines_pass,
            words=None if english is None else not english,
            foreign=bool(foreign),
            loop=loop is not None,
            broken=bool(broken),
            spans=tuple(Span(*span, why) for spans, why in marked for span in spans),
        )

    def language_of(self, text: str) -> str:
        """The language of a whole text, apart from code and URLs."""
        return self.identify(_UNJUDGED.sub(" ", text[:_MOST_IDENTIFIED]))


def has_own_script(language: str) -> bool:
    """Whether the language is not written in Latin letters, so that English words stand out."""
    return "Latin" not in LANGUAGES[language].scripts


def find_loop(text: str) -> tuple[int, int] | None:
    """The range at the end of a text that repeats itself; None if it does not.

    A loop has at least five repetitions and forty characters, and contains a letter or digit: rows
    of dashes or dots are not loops.

    The first round may begin earlier than it seems: "Yes. " ends like "know. ", from the dot on.

    >>> find_loop("Yes. " + "I do not know. " * 6)
    (3, 94)
    """
    tail = text.rstrip()[-_LOOP_TAIL:]
    codes = _codes(tail)
    # At most 4,000 / 5 = 800 periods, each compared in one step.
    for period in range(1, len(codes) // _LOOP_TIMES + 1):
        # The text repeats itself from just after the last place where it differs from itself
        # shifted by the period.
        different = np.flatnonzero(codes[period:] != codes[:-period])
        start = int(different[-1]) + 1 if len(different) else 0
        length = len(codes) - start
        long = length >= max(_LOOP_TIMES * period, _LOOP_CHARACTERS)
        if long and _WORD_CHARACTER.search(tail[start : start + period]):
            offset = len(text.rstrip()) - len(tail)
            return offset + start, offset + len(codes)
    return None


def _lines(text: str) -> Iterator[tuple[int, int]]:
    """The lines that are long enough to be judged."""
    for found in regex.finditer(r"[^\n]+", text):
        if _count_words(found[0]) >= _MIN_WORDS:
            yield found.span()


def _count_words(line: str) -> float:
    """Words between spaces; in scripts without spaces, two characters count as one word."""
    spaced = sum(1 for word in line.split() if _SPACED_WORD.search(word))
    return spaced + len(_UNSPACED.findall(line)) / 2


def _english(text: str, lines: list[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Lower-case English words in these lines."""
    words = _english_words()
    for start, end in lines:
        for found in _LATIN_WORD.finditer(text, start, end):
            if found[0] in words:
                yield found.span()


@cache
def _english_words() -> frozenset[str]:
    """Everyday English words of four letters or more, in lower case."""
    listed = wordfreq.get_frequency_dict("en", wordlist="best")
    least = wordfreq.zipf_to_freq(_MIN_ZIPF)
    return frozenset(
        word
        for word, frequency in listed.items()
        if frequency >= least and len(word) >= _MIN_LETTERS and word.isascii() and word.isalpha()
    )


def _foreign(text: str, languages: set[str], prompt: str) -> Iterator[tuple[int, int]]:
    """Runs of characters outside the scripts of the languages, Latin and Greek (mathematics)."""
    policy = GuardPolicy(languages=tuple(sorted(languages)), scripts=("Greek", "Latin"))
    codes = _codes(text)
    # A table with one flag for each code point.
    allowed = allowed_characters(policy)[codes] | (codes == ord(_BROKEN))
    bad = np.flatnonzero(~allowed & ~np.isin(codes, _codes(prompt)))
    # Split where indices are not consecutive: [3, 4, 9] has the runs [3, 4] and [9].
    for run in np.split(bad, np.flatnonzero(np.diff(bad) != 1) + 1):
        if len(run):
            yield int(run[0]), int(run[-1]) + 1


def _codes(text: str) -> npt.NDArray[np.uint32]:
    # One number for each code point, so that indices are those of `str`.
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")
