"""The smallest parts of a chunk of text: words, numbers, addresses, marks.

A chunk is what blanks divide. An atom is a word with what is written in it (don't, game-winning,
U.S.), a number with its sign and unit (-5°C, $3.4, 10:30, 74-35=39), an address, file or identifier
(node.js, x86_64), or a mark. A Korean word is an atom with its particles: 코스피(KOSPI)지수는.
"""

import re
from collections.abc import Sequence

import regex

from vllm_kprune.prompt.kinds import ENGLISH, korean_kind, latin_kind

__all__ = ["HANGUL", "atoms"]

HANGUL = re.compile("[\u1100-\u11ff\u3130-\u318f\uac00-\ud7af]")
_LETTER = r"[\p{L}\p{M}\p{N}_\u200c\u200d]"
_TITLES = "Mr|Mrs|Ms|Dr|Prof|St|Jr|Sr|vs|No|Fig|Inc|Ltd|Corp|Gen|Col|Lt|Sgt|Rev|Gov|Sen|Rep"
_ATOM = regex.compile(
    rf"""(?xV1)
    (?P<address>(?:https?|ftp|file)://[^\s<>"'“”「」『』]*[\p{{L}}\p{{N}}/=_#\-]
      | www\.[^\s<>"'“”]*[\p{{L}}\p{{N}}/=_#\-]
      | [\w.+\-]++@[\w\-]++(?:\.[\w\-]++)+
      | (?<!{_LETTER})(?:[A-Za-z]:\\|~?/|\.{{1,2}}/)[\w.\-/\\+~]*[\w/]
    )
    |(?P<short>(?:\p{{L}}\.){{2,}} | (?:{_TITLES})\. | (?<!{_LETTER})\p{{Lu}}\.(?=$))
    |(?P<word>
      (?: (?<!{_LETTER}|[)\]])[+\-−–±~≈<>≤≥]{{1,2}}(?=\p{{Sc}}?\.?\p{{N}})
        | (?<![\p{{L}}\p{{M}}\p{{N}}\-])-{{1,2}}(?=\p{{L}}) )?
      [\p{{Sc}}\#@\\]*+ (?:\.(?=\p{{N}}))? {_LETTER}++
      (?:
        (?: [._/\\:@+~\#&=\-’'·・‐‑−–×÷*^] | :: | -> | \.\.
          | (?<=\p{{N}})[,<>≤≥](?=[\p{{N}}−\-]) | (?<=\p{{N}}[%°])[~\-–−+×÷=] )
        (?:[\-−+](?=\p{{Sc}}?\p{{N}}))? \p{{Sc}}? {_LETTER}++
       | [(\[][^\s()\[\]]{{1,16}}[)\]](?={_LETTER}){_LETTER}++
       | [(](?:s|es|\d{{0,2}})[)]
       | ['’"”)\]」』》〉〕】%‰°℃℉′″\p{{Sc}}]++(?=\p{{Hangul}}){_LETTER}++
      )*+
      (?:[%‰°℃℉′″]++[CFK]?|\p{{Sc}}|\+\+?|\#(?=$))?
    )
    |(?P<unit>[°℃℉%‰′″\p{{Sc}}][CFK]?(?!{_LETTER}))
    |(?P<mark>\.\.+|\X)
    """
)
_NUMBER = regex.compile(
    r"[+\-−–±~≈<>≤≥\p{Sc}#.]*\p{N}(?:[\p{N}.,:/~\-–−+×÷=*^%°]*)(?:\p{L}{0,4}[²³]?/?\p{L}{0,3})[%‰°℃℉′″\p{Sc}+]*[CFK]?"
)
# A word or number, with marks around it that join nothing. Of those after it, only the first may be
# a dot.
_PLAIN = re.compile(r"""(["'“‘(\[〈《「『]*)(\w+)(\.?[,;:!?)\]"'”’〉》」』]*)""")
_TITLE_WORDS = frozenset(_TITLES.split("|"))
_PUNCTUATION, _DIGIT = regex.compile(r"\p{P}"), regex.compile(r"\p{N}")
_YEAR = re.compile("(?:1[0-9]|20)[0-9]{2}")
_IDENTIFIER = re.compile(r"[._/\\:@#=]|->")
_MARKS = {
    **dict.fromkeys(".!?…。！？।؟｡", "."),
    **dict.fromkeys(",;:，、；：،؛", ","),
    **dict.fromkeys("·・", "~"),
    **dict.fromkeys("([{（［｛「『《〈【〔“‘«", "("),
    **dict.fromkeys(")]}）］｝」』》〉】〕”’»", ")"),
    **dict.fromkeys("-–—―−~～〜", "-"),
    **dict.fromkeys("=<>+×÷*/^≤≥≠≈±∓→←⇒⇔∈√", "o"),
}


def atoms(chunk: str) -> Sequence[tuple[str, str]]:
    """(atom, kind) of each atom of a chunk, which has no blanks; together they are the chunk.

    >>> atoms("(-5°C)")
    [('(', '('), ('-5°C', 'N'), (')', ')')]
    """
    # Most chunks are a word, perhaps with marks around it, which the pattern takes long to find.
    if chunk.isalnum():
        return [(chunk, _kind("word", chunk))]
    if found := _PLAIN.fullmatch(chunk):
        before, word, after = found.groups()
        if word.isalnum() and not (after[:1] == "." and (len(word) == 1 or word in _TITLE_WORDS)):
            marks = [(one, _mark(one)) for one in before]
            return [*marks, (word, _kind("word", word)), *((one, _mark(one)) for one in after)]
    return [(one[0], _kind(str(one.lastgroup), one[0])) for one in _ATOM.finditer(chunk)]


def _mark(atom: str) -> str:
    return _MARKS.get(atom[0]) or ("'" if _PUNCTUATION.match(atom) else "s")


def _kind(group: str, atom: str) -> str:
    if group == "mark":
        return _mark(atom)
    if group in ("address", "unit"):
        return "U" if group == "address" else "s"
    if not atom.isascii() and HANGUL.search(atom):
        return korean_kind(atom)
    if group == "short":
        return ENGLISH.get(atom.lower(), "W")
    if atom.isalpha():
        return _letters(atom)
    if _DIGIT.search(atom):
        if _YEAR.fullmatch(atom):
            return "4"
        return "N" if _NUMBER.fullmatch(atom) else "U"
    return "U" if _IDENTIFIER.search(atom) else _letters(atom)


def _letters(atom: str) -> str:
    word = atom.lower()
    kind = latin_kind(word)
    if kind == "m" or atom == "May":
        return "w" if atom == word else "m"
    if kind == "w" and "-" in word and {latin_kind(part) for part in word.split("-")} <= {"n", "M"}:
        return "n"
    return "W" if kind == "w" and atom[0].isupper() else kind
