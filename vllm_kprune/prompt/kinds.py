"""The kinds of a text's smallest parts, each one character, and the words that have a kind.

A text becomes a string of kinds, one for each part, and `phrases` searches that string for what
belongs together: a number and its unit, "no more than" and its number, a negation and its word.
English, Korean and Chinese have full tables; of other languages only negations are known.
"""

import re
from collections.abc import Mapping
from functools import lru_cache

import regex

__all__ = ["ENGLISH", "GAPS", "MARKS", "chinese_kind", "korean_kind", "latin_kind"]

# Blanks: " " within a line, "\n" with one line end, "|" with several.
GAPS = " \n|"
# "." ends a sentence, "," divides it, "(" opens, ")" closes, "'" is a quote or any other mark,
# "-" is a dash by itself, "o" an operator such as =, "~" the dot in names (约翰·亚当斯).
MARKS = ".,()'"
# Words: w any, f a function word, U whole or not at all (address, file, identifier), N a number,
# n a number word, M a magnitude, m a month, l a label of a number (Row 1), D a Korean date or time.

_WORDS: Mapping[str, str] = {
    # f: a number is not bound to these, as in "118 for".
    "f": "the a an of in on for with as is are was were be been being am do does did has have had "
    "he she it they we you i his her its their our your my that which who whom whose this these "
    "those there then into from or but so if when while where also such can could would will shall "
    "should may might must here him them us me what how why because onto off out",
    "&": "and",
    "t": "to through until till",
    "y": "by",
    "A": "at",
    "u": "up",
    "h": "than",
    "q": "more less fewer greater larger smaller higher lower later earlier longer shorter older "
    "younger better worse most least best",
    # B: a bound that stands before its number by itself.
    "B": "under over above below within between maximum minimum max min exceeding exactly only "
    "beyond beneath past before after since nearly almost about around approximately roughly",
    "n": "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen "
    "fifteen sixteen seventeen eighteen nineteen twenty thirty forty fifty sixty seventy eighty "
    "ninety half quarter first second third fourth fifth sixth seventh eighth ninth tenth",
    "M": "hundred hundreds thousand thousands million millions billion billions trillion trillions "
    "dozen dozens percent percentage bn mn",
    "m": "january february march april june july august september october november december jan "
    "feb mar apr jun jul aug sep sept oct nov dec",
    "a": "am pm ad bc bce ce o'clock a.m. p.m. a.d. b.c. b.c.e. c.e.",
    "j": "per every each",
    # p: with it, a noun is something else than without.
    "p": "former previous next last alleged acting deputy false fake supposed so-called potential",
    "l": "row rows table figure fig fig. chapter section page pages step level version type phase "
    "part volume no. room line grade class route article apollo boeing",
}
ENGLISH: Mapping[str, str] = {
    word: kind for kind, words in _WORDS.items() for word in words.split()
}
# Without these words a sentence says the opposite, so they go last.
_NEGATIONS = (
    "not no never nor neither without cannot hardly barely unless except against nicht kein keine "
    "keinen nie ohne jamais sans non nunca sin não nem sem senza tidak bukan tanpa không inte ikke "
    "ej не ни нет без لا لم لن ليس غير मत δεν μη χωρίς לא אין בלי"
)
_NEGATIONS_AFTER = "none nothing nobody ne pas नहीं değil"
# Without these words a sentence says the opposite, so they go last: x with the next word, ! alone.
_NEGATING = {word: "x" for word in _NEGATIONS.split()} | {
    word: "!" for word in _NEGATIONS_AFTER.split()
}


def latin_kind(word: str) -> str:
    """The kind of a word in lower case, of any script but Han, kana and Hangul."""
    if word.endswith(("n't", "n’t")):
        return "x"
    return _NEGATING.get(word) or ENGLISH.get(word, "w")


# Korean words are eojeol: a noun or verb with its particles and endings. H is any, v negates the
# next and V the one before; R is the dependent noun of "can"; E a bound after its number, F before.
_KOREAN_WORDS: Mapping[str, str] = {
    "v": "안|못",
    "V": "(?:않|없|아니|못하|못했|못한|못할|못해|말아|말고|말라|마라|마세요|마십시오|모르).*",
    "R": "(?:수|줄|리|적|필요)(?:가|는|도|를|만|조차|밖에)?",
    "E": "(?:이하|이상|미만|초과|이내|이전|이후|가량|정도|남짓|까지|부터|안팎).*",
    "F": "최대|최소|최소한|최대한|적어도|많아야|기껏해야|고작|불과|단|약|거의|총|겨우",
    "n": "한|두|세|네|다섯|여섯|일곱|여덟|아홉|열|스무|몇|수십|수백|수천|수만|반",
    "a": "오전|오후|새벽|아침|저녁|밤|기원전|서기",
    "k": r"(?:영|일|이|삼|사|오|육|칠|팔|구|십|백|천|만|억|조){2,}",
}
_KOREAN = re.compile("|".join(f"(?P<{kind}>{words})" for kind, words in _KOREAN_WORDS.items()))
_KOREAN_NUMBER = regex.compile(
    r"(?P<date>\p{N}[\p{N}.,]*(?:년|월|일|시|분|초|세기|년대|개월|주일|시간)"
    r"(?:간|째|경|쯤|전|후)?(?P<rest>\p{Hangul}*))"
    r"|(?P<bare>[^\p{L}]*\p{N}[\p{N}.,:/~\-–십백천만억조경]*)"
    r"|(?P<any>[^\p{L}]*\p{N}.*)"
)


def korean_kind(word: str) -> str:
    """The kind of an eojeol. One that begins with a digit is N, D with a unit of time.

    k is a number that still wants its unit: 8만, 120만.
    """
    # A word of letters alone is no number; to know that takes far less time than the search.
    if not word.isalpha() and (found := _KOREAN_NUMBER.fullmatch(word)):
        if found["date"]:
            return "D" if not found["rest"] else "d"
        return "k" if found["bare"] else "K"
    # The first kind that a word has is its kind.
    kind = _KOREAN.fullmatch(word)
    return str(kind.lastgroup) if kind else "H"


# Chinese: c a word of one or two characters, C a longer one, i a particle that nothing is bound
# to; X negates the next, Y is the case (被, 把), Z a numeral, b a bound before its number, e after.
_CHINESE: Mapping[str, str] = {
    word: kind
    for kind, words in {
        "X": "不 没 沒 无 無 未 勿 非 别 別 没有 沒有 不是 不能 不会 不會 无法 無法 并非 並非",
        "Y": "被 把 将 將 由 给 給 让 讓 比 从 從 向 对 對 以 于 於",
        "b": "至少 至多 最多 最少 最高 最低 不超过 不超過 不少于 不少於 不低于 不低於 不高于 "
        "不高於 不多于 不多於 不足 不到 超过 超過 多于 多於 少于 少於 大于 大於 小于 小於 低于 "
        "低於 高于 高於 达到 達到 达 達 约 約 大约 大約 近 将近 將近 仅 僅 只有 第 每 共 逾 接近 "
        "不小于 不大于",
        "e": "以上 以下 以内 以內 之内 之內 左右 以前 以后 以後 多 余 餘 之间 之間",
        "i": "的 了 着 和 与 與 及 或 而 也 都 就 在 是 有 地 得 等 之 其 这 這 那 他 她 它 们 "
        "們 为 為 所 但 并 並 因 则 則 又 还 還 已 曾 会 會 可 可以 但是 因为 因為 以及 他们 "
        "她们 它们 这个 那个 一个 一些 自己 中 上 下 里 後 后 前 时 時",
    }.items()
    for word in words.split()
}
_NUMERAL = regex.compile("[〇零一二三四五六七八九十百千万萬亿億兆两兩半几幾廿卅]+")


@lru_cache(maxsize=50_000)
def chinese_kind(word: str) -> str:
    """The kind of a Chinese word."""
    if kind := _CHINESE.get(word):
        return kind
    if _NUMERAL.fullmatch(word):
        return "Z"
    return "c" if len(word) <= 2 else "C"
