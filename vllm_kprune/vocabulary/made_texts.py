"""Evidence that is put together here: chat, runs of one character, Sino-Korean words in hanja.

No package has counts of these that may be shipped, so they are made of what is at hand: the emoji
and the Korean words of `wordfreq` with their frequencies, and a dictionary that spells Korean words
in hanja. How the parts are put together is an estimate: what matters is that no form is forgotten.
"""

import itertools
import json
import random
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

import regex
import zstandard

from vllm_kprune.vocabulary.batches import WeightedText
from vllm_kprune.vocabulary.wordlists import word_frequencies

__all__ = ["HANJA_WORDS", "chat_texts", "hanja_character_texts", "hanja_texts", "run_texts"]

HANJA_WORDS = Path(__file__).parent / "words" / "hanja-words.json.zst"

_EMOJI = regex.compile(r"\p{Emoji_Presentation}|\p{Extended_Pictographic}")
_EMOJI_WORD = regex.compile(r"[\p{Emoji_Presentation}\p{Extended_Pictographic}\u200d\ufe0f]+")
_MODIFIED = regex.compile(r"\p{Emoji_Modifier_Base}")
_TONES = "🏻🏼🏽🏾🏿"
# Share of all emoji that one without a frequency of its own counts at least.
_RARE = 2e-4
# Repeated how often, after what, in which share of an emoji's occurrences.
_REPEATED = ((1, "", 0.45), (1, " ", 0.25), (2, "", 0.15), (3, "", 0.1), (2, " ", 0.05))
# How often marks stand in a chat; 200 are as many as all emoji.
_MARKS: Mapping[str, float] = {
    **{"!!": 8, "!!!": 5, "??": 4, "?!": 2, "...": 8, "..": 6, "~": 5, "~~": 3, "^^": 4, ";;": 2},
    **{"!": 6, "?": 6, " :)": 2, " ;)": 1, " :D": 1, " ^^": 3, " <3": 1, "♥": 1, "♡": 1, "★": 0.5},
    **{"☆": 0.5, "…": 2, "♪": 0.3, "→": 0.5, "※": 0.5, "▶": 0.3, "●": 0.3, "○": 0.3, "■": 0.3},
    **{"□": 0.3, "【": 0.2, "】": 0.2, "『": 0.2, "』": 0.2, "「": 0.3, "」": 0.3, "·": 1, "—": 1},
}
# Full-width forms, half-width Hangul, full-width signs.
_WIDE = ((0xFF01, 0xFF5F), (0xFFA0, 0xFFDD), (0xFFE0, 0xFFE7))
# What stands in rows: rules and boxes of comments, indents, fillers of tests and of base64.
_RUNS = "-=*_#~.+/<>|: \t\naAxX0fF19?!,"
_LONGEST_RUN = 128
# Before and after a run of marks, with the share of its occurrences.
_AROUND_RUNS = (("", "", 0.5), (" ", "", 0.2), ("", "\n", 0.2), ("//", "", 0.05), ("#", "", 0.05))
_HANJA_SHARES = (("", 0.45), ("(", 0.45), (" ", 0.1))
_CHARACTERS = 0.1  # what hanja count alone, compared with the words that they are in


def chat_texts() -> Iterator[WeightedText]:
    """Emoji, alone and repeated; runs of marks; full-width and half-width letters."""
    shares = _emoji_shares()
    for emoji, share in shares.items():
        for times, before, part in _REPEATED:
            yield before + emoji * times, share * part
        if _MODIFIED.match(emoji):
            for tone, before in itertools.product(_TONES, ("", " ")):
                yield f"{before}{emoji[0]}{tone}", share * 0.02
    for marks, often in _MARKS.items():
        yield marks, often / 200
    wide = [chr(code) for first, end in _WIDE for code in range(first, end)]
    other = wide.copy()
    random.Random(1).shuffle(other)
    # In pairs, so that the bytes of neighbours are seen together.
    for one, after in zip(wide, other, strict=True):
        yield one, 1e-5
        yield one + after, 1e-5


def run_texts() -> Iterator[WeightedText]:
    """Runs of one character, a run of n characters 1 / n times as often as the character alone."""
    for character in _RUNS:
        for length in range(2, _LONGEST_RUN + 1):
            if character.isalnum() or character.isspace():
                yield character * length, 1 / length
                continue
            for before, after, part in _AROUND_RUNS:
                yield before + character * length + after, part / length
    # Indents by tabs that spaces continue.
    for tabs, spaces in itertools.product(range(1, 9), range(1, 17)):
        yield "\t" * tabs + " " * spaces, 0.2 / (tabs * spaces)


def _emoji_shares() -> dict[str, float]:
    """Emoji with their share of all that the English and Korean word lists have."""
    found: dict[str, float] = defaultdict(float)
    for language in ("en", "ko"):
        for word, share in word_frequencies(language).items():
            if _EMOJI_WORD.fullmatch(word):
                found[word] += share
    total = sum(found.values())
    single = (chr(code) for code in (*range(0x2190, 0x3300), *range(0x1F000, 0x1FB00)))
    rare = {one: _RARE for one in single if _EMOJI.fullmatch(one)}
    return rare | {emoji: max(share / total, _RARE) for emoji, share in found.items()}


def hanja_texts() -> Iterator[WeightedText]:
    """Words in hanja, as frequent as their readings in the Korean word list, and their characters.

    Which spelling of a reading is meant is not known, so its frequency is divided equally.
    """
    words = _hanja_words()
    for word, share in words.items():
        for before, part in _HANJA_SHARES:
            yield before + word, share * part
    for character, share in _characters(words).items():
        yield character, share * _CHARACTERS


def hanja_character_texts() -> Iterator[WeightedText]:
    """The characters of these words alone: for profiles that keep only parts of them."""
    for character, share in _characters(_hanja_words()).items():
        for before, part in _HANJA_SHARES:
            yield before + character, share * part


def _hanja_words() -> dict[str, float]:
    with zstandard.open(HANJA_WORDS, "rt", encoding="utf-8") as stream:
        spellings: dict[str, list[str]] = json.load(stream)
    readings = word_frequencies("ko")
    found: dict[str, float] = defaultdict(float)
    for reading, words in spellings.items():
        if share := readings.get(reading, 0.0) / len(words):
            for word in words:
                found[word] += share
    return found


def _characters(words: Mapping[str, float]) -> Mapping[str, float]:
    found: dict[str, float] = defaultdict(float)
    for word, share in words.items():
        for character in word:
            found[character] += share
    return found
