"""Word lists with frequencies, from `wordfreq`, in the forms that running text has.

A list has words in lower case, each with its share of all text. Running text has them after a
space, at the start of a line, capitalised and in upper case, and each form may be a token of its
own. Chinese is listed in simplified characters only; lookups find traditional ones too.
"""

import gzip
import importlib.resources
import itertools
from collections.abc import Iterator, Mapping, Sequence
from functools import cache

import msgpack
import wordfreq

from vllm_kprune.vocabulary.batches import WeightedText

__all__ = ["GROUP_WORDS", "simplified_characters", "word_forms", "word_frequencies"]

# Words of neighbouring frequency are encoded together, which halves the time. What joins them, a
# space or a line end, begins a new token, so no token spans two words.
GROUP_WORDS = 16
# Ranks in a list: below the first, words occur in all forms; above the second, words are names.
_COMMON_WORDS, _KNOWN_WORDS = 30_000, 120_000
_SHORT_WORD = 4  # characters; in upper case, such a word is often an acronym


def word_frequencies(language: str) -> Mapping[str, float]:
    """Word in lower case -> its share of all text."""
    words: dict[str, float] = wordfreq.get_frequency_dict(language, wordlist="best")
    return _EitherChinese(words) if language == "zh" else words


@cache
def simplified_characters() -> Mapping[int, str]:
    """wordfreq's table from traditional to simplified Chinese, for `str.translate`."""
    path = importlib.resources.files(wordfreq) / "data" / "_chinese_mapping.msgpack.gz"
    # The keys are code points; msgpack refuses keys that are not text unless it is told.
    table: dict[int, str] = msgpack.unpackb(
        gzip.decompress(path.read_bytes()), strict_map_key=False
    )
    return table


class _EitherChinese(Mapping[str, float]):
    """wordfreq's Chinese list, where a traditional word has the frequency of its simplified form.

    The list itself has simplified characters only.
    """

    def __init__(self, words: Mapping[str, float]) -> None:
        self._simplified = simplified_characters()
        self._words = words

    def __getitem__(self, word: str) -> float:
        # Only lookups: iteration gives the list as it is, so no word comes twice.
        return self._words[word.translate(self._simplified)]

    def __iter__(self) -> Iterator[str]:
        return iter(self._words)

    def __len__(self) -> int:
        return len(self._words)


def word_forms(language: str) -> Iterator[WeightedText]:
    """The words of a list, frequent ones first, in the forms of running text, with weights.

    The shares of the forms are estimates: what matters is that no form is forgotten. Words are
    joined in groups. For the words "the" and "of" with a mean frequency of 0.04 this yields, among
    others, (" the of", 0.032) and (" The Of", 0.0048).
    """
    for rank, words, frequency in _word_groups(language):
        cased = [word for word in words if word.capitalize() != word]
        capitalised = [word.capitalize() for word in cased]
        # Without case: Hangul, Han, digits.
        other = [word for word in words if word.capitalize() == word]
        forms = [(_spaced(other), 0.9), (_lines(other), 0.1)]
        if rank < _COMMON_WORDS:
            short = [word.upper() for word in cased if len(word) <= _SHORT_WORD]
            upper = [word.upper() for word in cased if len(word) > _SHORT_WORD]
            forms += [(_spaced(cased), 0.8), (_spaced(capitalised), 0.12)]
            forms += [(_lines(cased), 0.05), (_lines(capitalised), 0.05)]
            forms += [(_spaced(short), 0.1), (_lines(short), 0.05), (_spaced(upper), 0.02)]
        elif rank < _KNOWN_WORDS:
            forms += [(_spaced(cased), 0.6), (_spaced(capitalised), 0.4)]
        else:
            forms += [(_spaced(capitalised), 1.0)]
        yield from ((text, frequency * share) for text, share in forms if text)


def _word_groups(language: str) -> Iterator[tuple[int, list[str], float]]:
    """Rank of the first word, words, and mean frequency of each group of neighbours."""
    frequencies = wordfreq.get_frequency_dict(language, wordlist="best")
    ranked = iter(frequencies.items())
    # The frequency dictionary of wordfreq is in order of frequency.
    for rank in range(0, len(frequencies), GROUP_WORDS):
        group = list(itertools.islice(ranked, GROUP_WORDS))
        mean = sum(frequency for _, frequency in group) / len(group)
        yield rank, [word for word, _ in group], mean


def _spaced(words: Sequence[str]) -> str:
    return "".join(f" {word}" for word in words)


def _lines(words: Sequence[str]) -> str:
    return "\n".join(words)
