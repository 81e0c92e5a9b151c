"""Find texts whose layout matters: code, JSON, tables and lists. They are left whole.

Their marks and line ends say what belongs to what, but these are frequent, so they would be dropped
first. A text counts as what most of its lines are, so prose that quotes two lines of code is prose.
Nothing is parsed: the kind is told by how lines begin and end.
"""

import re
from collections.abc import Callable, Mapping, Sequence

__all__ = ["layout_of"]

_MOST_LINES = 400  # looked at, from the beginning
_LONGEST = 400  # characters of a line that are looked at
_MOST = 0.6  # this share of the lines decides
_SURE = 0.25  # so many of them have to be code beyond doubt
_FEWEST = 3
_FENCE = re.compile(r"^ {0,3}(```|~~~)", re.M)
_JSON_LINE = re.compile(r'\s*(?:[\[{}\]],?|"[^"\n]{1,80}"\s*:.*|"[^"\n]*",?|-?[\d.]+,?)\s*$')
_JSON = re.compile(r'\s*(?:\{\s*"[^"\n]{1,200}"\s*:|\[\s*[\[{"\d-])')
# Not <|…|>, which is how control tokens look.
_TABLE_LINE = re.compile(r"(?:[^|\n]*(?<!<)\|(?!>)){2}.*|[^\t\n]+(?:\t+[^\t\n]+){2,}")
_LIST_LINE = re.compile(r"\s*(?:[-*+•◦▪‣·] |\[[ xX]\] |(?:\d{1,3}|[a-zA-Z])[.)] |[①-⑳])")
_CODE_LINE = re.compile(
    r"\s*(?:[)\]}]+[;,]?\s*$|(?://|/\*|\*/|\#!|\#include|--\s|<[/!?a-zA-Z][^>]*>)"
    r"|(?:def|class|async def|for|while|if|elif|else|try|except|with|match|case)\b.*:\s*(?:\#.*)?$"
    r"|(?:import|from)\s+[\w.]+(?:\s+import\b.*|\s+as\s+\w+)?\s*$|return\b.{0,60}[\w)\]}\"']$|@\w+"
    r"|(?:const|let|var|func|fn|pub|static|public|private|export|package|using|SELECT|INSERT)\s.*[=({;]"
    r"|[\w.\[\]\"']+\s*(?:[-+*/|&]?=|:=|=>|<-|->)\s*\S.*|[\w.]+\([^)]*\)\s*$|\$ \S)"
)


def layout_of(text: str) -> str | None:
    """`code`, `json`, `table` or `list`, or None for prose.

    >>> layout_of("- flour\\n- two eggs\\n- milk"), layout_of("a | b\\n--|--\\n1 | 2")
    ('list', None)
    """
    if _JSON.match(text) and text.rstrip()[-1:] in "}]":
        return "json"
    lines = [
        line[:_LONGEST] for line in text.split("\n", _MOST_LINES)[:_MOST_LINES] if line.strip()
    ]
    if len(lines) < _FEWEST:
        return None
    if _fenced(text):
        return "code"
    for name, matches in _KINDS.items():
        if sum(bool(matches(line)) for line in lines) > _MOST * len(lines):
            return name
    return "code" if _is_code(lines) else None


def _is_code(lines: Sequence[str]) -> bool:
    """True if a quarter of the lines can only be code, and most of the others may be."""
    sure = [
        line.rstrip().endswith((";", "{", "}")) or bool(_CODE_LINE.match(line)) for line in lines
    ]
    maybe = [one or line[:1] in " \t#" for one, line in zip(sure, lines, strict=True)]
    return sum(sure) > _SURE * len(lines) and sum(maybe) > _MOST * len(lines)


def _fenced(text: str) -> bool:
    """True if most of a text is between fences."""
    fences = [match.start() for match in _FENCE.finditer(text)]
    inside = sum(b - a for a, b in zip(fences[::2], fences[1::2], strict=False))
    return inside > _MOST * len(text)


def _csv(line: str) -> bool:
    # Prose has commas too, but a blank after most of them.
    return line.count(",") - line.count(", ") >= 2


_KINDS: Mapping[str, Callable[[str], object]] = {
    # Most lines have neither mark, and then the slow search is not needed.
    "table": lambda line: (
        (("|" in line or "\t" in line) and _TABLE_LINE.fullmatch(line)) or _csv(line)
    ),
    "json": _JSON_LINE.fullmatch,
    "list": _LIST_LINE.match,
}
