"""Divide a run of letters into its likeliest words, taking words as independent.

The probability of a division is the product of its words', so its nats are their sum. `best[n]` is
the lowest sum for the first n letters. With ab = 9, a = 5 and b = 6 nats, "ab" stays whole (9 < 5 +
6). Chinese and Korean are divided in this way: in Korean, particles follow the noun.
"""

import math
from collections.abc import Iterator, Mapping, Sequence, Set

from vllm_kprune.prompt.word_lists import UNLISTED_NATS, prefixes, word_list

__all__ = ["chinese_words", "korean_words", "likeliest_parts"]

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


def likeliest_parts(
    run: str, nats: Mapping[str, float], begun: Set[str]
) -> list[tuple[int, int, float]]:
    """(begin, end, nats) of each word; `begun` is what the words of the list begin with.

    A word that is not listed has `UNLISTED_NATS`, however long.

    >>> likeliest_parts("abcab", {"ab": 9.0, "a": 5.0, "b": 6.0, "cab": 8.0}, {"a", "c", "ca"})
    [(0, 2, 9.0), (2, 5, 8.0)]
    """
    rare = [value for value in [nats.get(one, UNLISTED_NATS) for one in run] if value > _RARE_NATS]
    # An unlisted word of n letters costs 4 + 12 n nats. If the letters are not rare by more than 4
    # nats together, they cost less one by one, and no unlisted word need be tried.
    sure = sum(rare) - _RARE_NATS * len(rare) < _EXCESS_NATS
    cuts = (_listed_cuts if sure else _all_cuts)(run, nats, begun)
    parts = []
    end = len(run)
    while end:
        at = cuts[end]
        parts.append((at, end, nats.get(run[at:end], UNLISTED_NATS)))
        end = at
    return parts[::-1]


def _all_cuts(run: str, nats: Mapping[str, float], begun: Set[str]) -> Sequence[int]:
    """[letters + 1] where the last word of the likeliest division of the first n letters begins."""
    count = len(run)
    best, cuts = [0.0] + [math.inf] * count, [0] * (count + 1)
    for at in range(count):
        before = best[at]
        price, listed = UNLISTED_NATS, True
        for end in range(at + 1, min(at + _LONGEST, count) + 1):
            total = price
            if listed:
                part = run[at:end]
                total = nats.get(part, price)
                listed = part in begun
            if before + total < best[end]:
                best[end], cuts[end] = before + total, at
            price += _UNLISTED_LETTER_NATS
    return cuts


def _listed_cuts(run: str, nats: Mapping[str, float], begun: Set[str]) -> Sequence[int]:
    """The same, with no unlisted words of several letters: a third of the time."""
    count = len(run)
    best, cuts = [0.0] + [math.inf] * count, [0] * (count + 1)
    for at in range(count):
        before = best[at]
        for end in range(at + 1, min(at + _LONGEST, count) + 1):
            part = run[at:end]
            total = before + nats.get(part, math.inf if end > at + 1 else UNLISTED_NATS)
            if total < best[end]:
                best[end], cuts[end] = total, at
            if part not in begun:
                break
    return cuts


def korean_words(run: str) -> Iterator[tuple[str, float]]:
    """The noun or verb of a Korean word and its particles, with the nats of each.

    A name that falls apart into single syllables is one word, and a rare one.
    """
    parts = likeliest_parts(run, word_list("ko"), prefixes("ko"))
    count = next((n for n, (a, b, _) in enumerate(parts) if b - a > 1), len(parts))
    while count and run[parts[count - 1][0]] in _PARTICLES:
        count -= 1
    if count > 1:
        yield run[: parts[count - 1][1]], _NAME_NATS
        parts = parts[count:]
    for begin, end, nats in parts:
        yield run[begin:end], nats


def chinese_words(run: str) -> Iterator[tuple[int, int, float]]:
    """(begin, end, nats) of each word of a run in simplified characters.

    Single characters side by side are taken as one word, a name, if none of them is common; so are
    three or more characters that write sounds.
    """
    begun: tuple[int, int, float] | None = None
    sounds, single = True, True
    for begin, end, nats in likeliest_parts(run, word_list("zh"), prefixes("zh")):
        foreign = _SOUNDS.issuperset(run[begin:end])
        alone = end - begin == 1 and nats > _COMMON_NATS
        if begun and ((single and alone) or (sounds and foreign)):
            begun = (begun[0], end, max(begun[2], nats))
            sounds, single = sounds and foreign, single and alone
            continue
        if begun:
            yield begun
        begun, sounds, single = (begin, end, nats), foreign, alone
    if begun:
        yield begun
