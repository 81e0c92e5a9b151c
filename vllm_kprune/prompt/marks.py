"""Read the marks that choose which spans of a text are pruned.

    Answer from this text. <kprune keep="0.7">… long text …</kprune> Who wrote it?

The model never sees the marks. A backslash before a mark makes it plain text. This module knows
one text; `segments` decides what the marks mean for a whole request.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from vllm_kprune.errors import KPruneError

__all__ = ["MarkError", "Segment", "split_marks"]

_MOST_SPANS = 2048
# `(?<!\\)` lets a match begin only at the first backslash of a run. Without it the search would
# start again at each backslash, and a text of n backslashes would take n * n steps.
# `(?![\w-])`: <kprunes> and <kprune-x> are other tags, and plain text.
_MARK = re.compile(r"(?<!\\)(?P<slashes>\\*+)<(?P<close>/?)kprune(?![\w-])")
# At most 32 characters of a rate: an open quote is not looked up to the end of a long text.
_OPEN_REST = re.compile(r"""\s*(?:keep\s*=\s*(?P<q>["'])(?P<keep>[^"'<>]{0,32})(?P=q)\s*)?>""")
_CLOSE_REST = re.compile(r"\s*>")
_ESCAPE = r"for the text itself, write \<kprune> or \</kprune>"


class MarkError(KPruneError):
    """Marks that do not pair up, or that kprune cannot read."""


@dataclass(frozen=True)
class Segment:
    """A part of a text, without marks. `keep` is the rate that its mark names, or None."""

    text: str
    marked: bool = False
    keep: float | None = None


def split_marks(text: str) -> list[Segment]:
    r"""Split a text at its marks and remove the backslashes that escape marks.

    >>> for segment in split_marks('a <kprune keep="0.5">b</kprune> c'):
    ...     print(segment)
    Segment(text='a ', marked=False, keep=None)
    Segment(text='b', marked=True, keep=0.5)
    Segment(text=' c', marked=False, keep=None)

    Backslashes before a mark are read as in a string literal: two make one backslash, and one that
    is left over escapes the mark. Backslashes anywhere else stay as they are.

    >>> [segment.text for segment in split_marks(r"a\b \<kprune> \\<kprune>c</kprune>")]
    ['a\\b <kprune> \\', 'c']

    Raises `MarkError` for a mark that is misspelt, nested, not closed, or not opened.
    """
    segments: list[Segment] = []
    plain: list[str] = []
    opened: _Mark | None = None
    for count, item in enumerate(_read(text)):
        if isinstance(item, str):
            plain.append(item)
            continue
        # A span is read as four items: text, opening mark, text, closing mark.
        if count > 4 * _MOST_SPANS:
            raise MarkError(f"a text has more than {_MOST_SPANS} marked spans; mark fewer")
        _check_order(item, opened)
        # An empty span is a segment too: it marks the request, so only marked spans are pruned.
        if opened or any(plain):
            keep = opened.keep if opened else None
            segments.append(Segment("".join(plain), opened is not None, keep))
        plain.clear()
        opened = item if item.opens else None
    if opened is not None:
        raise MarkError(f"<kprune> at character {opened.start} is not closed; {_ESCAPE}")
    return [*segments, Segment("".join(plain))] if any(plain) else segments


@dataclass(frozen=True)
class _Mark:
    start: int
    end: int
    opens: bool
    keep: float | None = None


def _read(text: str) -> Iterator[str | _Mark]:
    """Yield the marks of a text, and the text before, between and after them, unescaped."""
    at = 0
    for match in _MARK.finditer(text):
        slashes = len(match["slashes"])
        start = match.end("slashes")
        plain = text[at : match.start()] + "\\" * (slashes // 2)
        if slashes % 2:
            # Three backslashes: one stays, one escapes. The rest of the mark is read as plain text.
            yield plain + text[start : match.end()]
            at = match.end()
        else:
            yield plain
            yield (mark := _mark(text, start, match))
            at = mark.end
    yield text[at:]


def _mark(text: str, start: int, match: re.Match[str]) -> _Mark:
    rest = (_CLOSE_REST if match["close"] else _OPEN_REST).match(text, match.end())
    if rest is None:
        raise MarkError(
            f"mark at character {start}: got {text[start : start + 40]!r}, expected <kprune>, "
            f'<kprune keep="0.7"> or </kprune>; {_ESCAPE}'
        )
    if match["close"]:
        return _Mark(start, rest.end(), False)
    return _Mark(start, rest.end(), True, _keep(rest["keep"], start))


def _check_order(mark: _Mark, opened: _Mark | None) -> None:
    if mark.opens and opened:
        raise MarkError(
            f"<kprune> at character {mark.start} is inside the span that opens at character "
            f"{opened.start}; marks cannot be nested"
        )
    if not mark.opens and not opened:
        raise MarkError(f"</kprune> at character {mark.start} closes nothing; {_ESCAPE}")


def _keep(value: str | None, at: int) -> float | None:
    if value is None:
        return None
    try:
        keep = float(value)
    except ValueError:
        keep = 0.0
    # float() also reads "nan" and "inf"; this comparison refuses both.
    if not 0 < keep <= 1:
        raise MarkError(
            f"<kprune> at character {at}: keep is {value!r}, expected a share above 0, at most 1"
        )
    return keep
