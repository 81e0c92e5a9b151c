"""What pruning may not break: phrases that stay or go whole, found without kprune's own rules."""

from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any
from unicodedata import category

import numpy as np
import numpy.typing as npt
import regex

_AMOUNT = r"\d[\d.,]*"
_MONTHS = "January|February|March|April|May|June|July|August|September|October|November|December"
# Each is found in the text before pruning. What is in it stays whole, or its number goes.
PHRASES: Mapping[str, Mapping[str, str]] = {
    "en": {
        "magnitude": rf"\$?{_AMOUNT}\s(?:hundred|thousand|million|billion|trillion|percent)\b",
        "bound": r"\b(?:more than|less than|fewer than|at least|at most|up to|over|under|nearly"
        rf"|no more than|between|within)\s\$?{_AMOUNT}\b",
        "date": rf"\b(?:{_MONTHS})\s\d{{1,2}}\b|\b\d{{1,2}}\s(?:{_MONTHS})\b",
        "counted": r"\b\d+(?:,\d{3})*\s(?:people|years|men|women|yards|points|km|days|games)\b",
        "negation": r"\b(?:not|never)\s[a-z]{4,}\b",
        "agent": r"\b[a-z]+ed\sby\b",
        "sum": r"\b\d+\s[-+×*/]\s\d+(?:\s=\s\d+)?\b",
    },
    "ko": {
        "magnitude": rf"(?<![\d.,]){_AMOUNT}\s?[천만억조]+\s?\p{{Hangul}}+",
        "bound": rf"(?<![\d.,]){_AMOUNT}\p{{Hangul}}*\s?(?:이하|이상|미만|초과|이내)\p{{Hangul}}*",
        "date": r"\d+월\s\d+일",
        "negation": r"\p{Hangul}+지\s않\p{Hangul}+|\p{Hangul}+\s수\s[없있]\p{Hangul}+",
    },
    "zh": {
        "magnitude": rf"{_AMOUNT}[百千万亿]+\p{{Han}}",
        "bound": rf"(?:至少|最多|不超过|超过|低于|高于|少于|多于|大约|约){_AMOUNT}",
        "date": r"\d+月\d+日",
        "negation": r"[不没]\p{Han}",
    },
}


def kept_characters(pruned: Any) -> npt.NDArray[np.bool_]:
    """[characters] True for what is left of the original."""
    kept = np.zeros(len(pruned.original) + 1, dtype=bool)
    for start, end, stays in zip(
        pruned.pieces.starts, pruned.pieces.ends, pruned.piece_kept, strict=True
    ):
        kept[start:end] = stays
    return kept[:-1]


def broken(pruned: Any, pattern: str) -> Iterator[tuple[str, bool]]:
    """Each phrase of the original of which something is left, and whether something is lost."""
    text, kept = pruned.original, kept_characters(pruned)
    for match in regex.finditer(pattern, text):
        inside = [kept[n] for n in range(*match.span()) if not text[n].isspace()]
        if any(inside):
            yield match[0], not all(inside)


def fused(pruned: Any) -> Iterator[str]:
    """Places where two letters or digits touch that did not touch before."""
    text, left = pruned.original, pruned.text
    kept = np.flatnonzero(kept_characters(pruned)).tolist()
    # Blanks may be put in, so what is left is walked with the original.
    at, places = 0, []
    for n in kept:
        while left[at] != text[n]:
            assert left[at] == " ", (left, text)
            at += 1
        places.append(at)
        at += 1
    for (n, m), (a, b) in zip(pairwise(kept), pairwise(places), strict=True):
        if m > n + 1 and b == a + 1 and _in_word(text[n]) and _in_word(text[m]):
            yield left[max(0, a - 12) : b + 12]


def headless(pruned: Any) -> Iterator[str]:
    """Korean words of which an end is left without its beginning."""
    text, kept = pruned.original, kept_characters(pruned)
    for match in regex.finditer(r"\p{Hangul}+", text):
        start, end = match.span()
        if (start == 0 or text[start - 1].isspace()) and not kept[start] and kept[start:end].any():
            yield match[0]


def _in_word(character: str) -> bool:
    return category(character)[0] in "LMN"
