"""What belongs together in a text: found as patterns in its string of kinds (see `kinds`).

"no more than 3.4 million euros" is one phrase, and so are "74 - 35 = 39", "not important" and
"12월 27일". A phrase stays or goes as a whole, so nothing else can take its place. Links join
neighbours, and phrases are what links join. A link never crosses an empty line.

>>> sorted(n for span in linked("B N M w") for n in span)  # "under 3.4 million euros"
[1, 2, 3, 4, 5, 6]
"""

import re
from collections.abc import Iterator

__all__ = ["linked"]

_G = "[ \n]"
_NUMBER = "[Nn4M]"  # what an English number ends or begins with
_KOREAN = "[NkKDdn4]"
# What a list in brackets has: 'a', "two words", 3
_ITEM = "(?:'[^|(),']{1,8}'|-?[N4])"
# (before, between, after): a link joins what is between to what is before and after. `before` has a
# fixed width, as a look-behind must.
_LINKS: tuple[tuple[str, str, str], ...] = (
    # 3.4 million, two hundred, 120만 명, 二十万; then what is counted: 14 women, 5 °C, 8만 파운드
    ("[NnkM4]", f"{_G}?", "[M]"),
    ("[nM]", _G, "n"),
    ("[NnM]", _G, "[wWUHs]"),
    ("4", _G, "[wUHs]"),
    ("k", _G, "[HKkNDdUwWMV]"),
    ("[NZ4kM]", "", "[ZcCHs]"),
    ("[NZ4]", " ", "[Zc]"),
    ("Z", "", "[N4]"),
    ("N", _G, "N(?=s|[^ ]|$)"),
    # 10:30 a.m., AD 79, 오전 3시; December 27, 27 December 2019; 12월 27일, 12月27日
    ("[Nn4]", _G, "[am]"),
    ("[amlF]", _G, f"(?:{_NUMBER}|{_KOREAN})"),
    ("m[ \n]N", f",{_G}", "[4N]"),
    ("m", _G, "[4N]"),
    ("D", _G, "[DdaN]"),
    ("[NZ4]c", "", "[NZ4]"),
    # no more than 2, at least 5, up to 5, under 18, to 5, by 5; 2회 이하로; 不超过10, 10以上
    ("x", _G, "[qA]"),
    ("[qwW]", _G, "h"),
    ("[qp]", _G, "w"),
    ("p", _G, "W"),
    ("[hqtyBF]", _G, f"(?:{_NUMBER}|{_KOREAN})"),
    ("A", _G, "q"),
    ("u", _G, f"t{_G}{_NUMBER}"),
    ("[NkKDd4M]", f"{_G}?", "E"),
    ("[Nkn4]" + _G + "H", _G, "E"),
    ("b", f"{_G}?", "[NZ4kn]"),
    ("[NZ4]", "", "e"),
    ("[NZ4]c", "", "e"),
    # 74 - 35 = 39, y = -2, 5 to 10, 5 and 10
    ("[NnwWUM4kKcC)]", f"{_G}?o{_G}?", "[NnwWU4kKcC(]"),
    ("[Nn4Mk]", f"{_G}?-{_G}?", "[Nn4kK]"),
    ("[NnM4]", f"{_G}[t&]{_G}", _NUMBER),
    ("[(]", "", f"[Nn4]{_G}?o"),
    (f"o{_G}[Nn4]", "", "[)]"),
    # 5 km per hour, 2 tablets every 4 hours
    ("[wWUMN]", f"{_G}j{_G}", "[wWUNn4]"),
    # not important, not a doctor, 먹지 않는다, 할 수 없다, 안 먹는다, 不重要
    ("x", f"{_G}(?:[fy]{_G})?", "[wWUnNqMKHB4jtalmuAhy]"),
    ("[HKUwdRW]", _G, "V"),
    ("[Hv]", _G, "R"),
    ("R", _G, "[HV]"),
    ("v", _G, "[HKwV]"),
    ("X", "", "[cCZbHNniYX4]"),
    # paid by, 被卡罗尔
    ("[wWU]", _G, "y"),
    ("Y", "", "[cCwWUZN4]"),
    # North Korea, Maria Lindqvist
    ("W", " ", "W"),
    ("[cCwW]", "~", "[cCwW]"),
    # f(x), NaCl(aq)
    ("[wWUNHK]", "[(][^ \n|()]{0,8}", "[)]"),
    # ['a', 'b', 'c'], {"a": 1}, [1, 2, 3]: without an item it is another list
    ("[(]", f"{_ITEM}(?:,{_G}?{_ITEM}){{1,99}}", "[)]"),
    # 서울(漢城)은: a Korean word goes on after brackets
    ("H", "[(][cCwWUN]+", "[)]H"),
    ("[cCwWUN][)]", "", "H"),
    ("[cCwWUNs]", "", "H"),
)
_CLASS = re.compile(r"\[([^]^]+)\]|(\w)")


def _needed(part: str) -> frozenset[str]:
    """The kinds that a part of a link begins with; empty if that is not plain to see."""
    match = _CLASS.match(part)
    return frozenset(match[1] or match[2]) if match else frozenset()


def _pattern(before: str, between: str, after: str) -> tuple["re.Pattern[str]", int]:
    """A link's pattern, and how much of its matches is before what it joins."""
    # `re` finds a class of characters far sooner than a look-behind, which it tries at each place.
    # Matches may not overlap, and do not: nothing that is between ends with what is before.
    if _CLASS.fullmatch(before):
        return re.compile(f"{before}{between}(?={after})"), 1
    return re.compile(f"(?<={before}){between}(?={after})"), 0


_PATTERNS = tuple(
    (_needed(before), _needed(after), *_pattern(before, between, after))
    for before, between, after in _LINKS
)


def linked(kinds: str) -> Iterator[range]:
    """Yield the parts that are joined to the one before them, as ranges of places in `kinds`."""
    present = frozenset(kinds)
    for before, after, pattern, lead in _PATTERNS:
        # Most texts are in one language, so most patterns need not be looked for.
        if (before and before.isdisjoint(present)) or (after and after.isdisjoint(present)):
            continue
        for match in pattern.finditer(kinds):
            yield range(match.start() + lead, match.end() + 1)
