"""Divide a run of letters into its likeliest words, taking words as independent.

The probability of a division is the product of its words', so its nats are their sum. `best[n]` is
the lowest sum for the first n letters. With ab = 9, a = 5 and b = 6 nats, "ab" stays whole (9 < 5 +
6). Chinese and Korean are divided in this way: in Korean, particles follow the noun.

Few runs may have an unlisted word of several letters, so most are searched for listed words only.
(The unigram model of `tokenizers` does the same in native code. It was slower on new text: its trie
takes 30 MB for a list, most of which is in no cache of the processor.)
"""

import math
import re
from collections.abc import Mapping, Sequence
from functools import cache

from vllm_kprune.prompt.word_lists import UNLISTED_NATS, word_list

__all__ = ["DividedWord", "Divider", "chinese_words", "divider", "korean_words", "likeliest_parts"]

DividedWord = tuple[str, float]
"""A word and its nats."""

_LONGEST = 8  # characters of a listed word that is written without spaces
# Each further letter of an unlisted word. Without this price, any 8 letters would be one unlisted
# word for 16 nats, less than two listed words of 9.
_UNLISTED_LETTER_NATS = 12.0
_RARE_NATS = _UNLISTED_LETTER_NATS
# What an unlisted word costs above that of its letters, less a little for rounding.
_EXCESS_NATS = UNLISTED_NATS - _UNLISTED_LETTER_NATS - 0.1
# What a list does not know falls apart into single characters, most of which it knows.
_NAME_NATS = 14.0
_COMMON_NATS = 7.0  # below this a single Chinese character is a word by itself
_PARTICLES = frozenset("은는이가을를의에로와과도만께야나랑고서라며든")
# Characters that write the sounds of foreign names.
_SOUNDS = frozenset(
    "阿埃艾奥巴贝比彼博布查达戴德迪蒂杜恩尔法菲费芬弗夫福盖戈格古哈汉赫霍基吉加杰卡凯坎科克肯"
    "库拉莱兰劳勒雷里利林卢鲁伦罗洛马迈曼梅蒙米莫姆纳内尼涅诺帕佩皮普奇恰乔切琼萨塞桑沙什史"
    "斯苏索塔泰坦多特提图托瓦威韦维温沃乌西希谢辛休雅亚耶伊因尤约扎泽兹佐登顿森堡莎娜娅琳奎"
)


class Divider:
    """Divides runs by one list of words and their nats. Several threads may use one object."""

    def __init__(self, nats: Mapping[str, float]) -> None:
        self._nats = nats
        self._letters = {word: value for word, value in nats.items() if len(word) == 1}
        plain = [one for one, value in self._letters.items() if value <= _RARE_NATS]
        self._rare = re.compile(f"[^{re.escape(''.join(plain))}]")
        longer = {word: value for word, value in nats.items() if 1 < len(word) <= _LONGEST}
        begun = (word[:end] for word in longer for end in range(2, len(word)))
        # Words of several letters; infinite for what only begins one, so that a search goes on.
        self._longer = {**dict.fromkeys(begun, math.inf), **longer}

    def divide(self, run: str) -> Sequence[DividedWord]:
        """The words of a run of letters: those of `likeliest_parts`, in less time."""
        # An unlisted word of n letters costs 4 + 12 n nats. If the letters are not rare by more
        # than 4 nats together, they cost less one by one.
        rare = [self._nats.get(one, UNLISTED_NATS) for one in self._rare.findall(run)]
        if sum(rare) - _RARE_NATS * len(rare) < _EXCESS_NATS:
            return self._listed_parts(run)
        return likeliest_parts(run, self._nats)

    def _listed_parts(self, run: str) -> Sequence[DividedWord]:
        count = len(run)
        # The last word of the likeliest division of the first n letters: its begin and its nats.
        best, cuts, nats = [0.0] + [math.inf] * count, [0] * (count + 1), [0.0] * (count + 1)
        letter, longer = self._letters.get, self._longer.get
        for at in range(count):
            before, end, last = best[at], at + 1, min(at + _LONGEST, count)
            value: float | None = letter(run[at], UNLISTED_NATS)
            while value is not None:
                if before + value < best[end]:
                    best[end], cuts[end], nats[end] = before + value, at, value
                end += 1
                value = longer(run[at:end]) if end <= last else None
        parts = []
        end = count
        while end:
            parts.append((run[cuts[end] : end], nats[end]))
            end = cuts[end]
        return parts[::-1]


@cache
def divider(language: str) -> Divider:
    """That of a language's list."""
    return Divider(word_list(language))


def likeliest_parts(run: str, nats: Mapping[str, float]) -> Sequence[DividedWord]:
    """The words of a run. One that is not listed has `UNLISTED_NATS`, however long.

    >>> likeliest_parts("abcab", {"ab": 9.0, "a": 5.0, "b": 6.0, "cab": 8.0})
    [('ab', 9.0), ('cab', 8.0)]
    """
    count = len(run)
    # Where the last word of the likeliest division of the first n letters begins.
    best, cuts = [0.0] + [math.inf] * count, [0] * (count + 1)
    for at in range(count):
        price = UNLISTED_NATS
        for end in range(at + 1, min(at + _LONGEST, count) + 1):
            total = best[at] + nats.get(run[at:end], price)
            if total < best[end]:
                best[end], cuts[end] = total, at
            price += _UNLISTED_LETTER_NATS
    parts = []
    end = count
    while end:
        word = run[cuts[end] : end]
        parts.append((word, nats.get(word, UNLISTED_NATS)))
        end = cuts[end]
    return parts[::-1]


def korean_words(parts: Sequence[DividedWord]) -> Sequence[DividedWord]:
    """The noun or verb of a Korean word and its particles, of the parts of the word.

    A name that falls apart into single syllables is one word, and a rare one.
    """
    if len(parts[0][0]) > 1:
        return parts
    count = next((n for n, (word, _) in enumerate(parts) if len(word) > 1), len(parts))
    while count and parts[count - 1][0] in _PARTICLES:
        count -= 1
    if count < 2:
        return parts
    return [("".join([word for word, _ in parts[:count]]), _NAME_NATS), *parts[count:]]


def chinese_words(parts: Sequence[DividedWord]) -> Sequence[DividedWord]:
    """The words of a run in simplified characters, of its parts.

    Single characters side by side are taken as one word, a name, if none of them is common; so are
    three or more characters that write sounds.
    """
    words: list[DividedWord] = []
    begun, most, sounds, single = "", 0.0, False, False
    for word, nats in parts:
        foreign = _SOUNDS.issuperset(word)
        alone = len(word) == 1 and nats > _COMMON_NATS
        if (single and alone) or (sounds and foreign):
            begun, most = begun + word, max(most, nats)
            sounds, single = sounds and foreign, single and alone
            words[-1] = begun, most
        else:
            begun, most, sounds, single = word, nats, foreign, alone
            words.append((word, nats))
    return words
