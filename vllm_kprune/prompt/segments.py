"""Which parts of a request may be pruned, each by itself.

By default: a plain prompt as a whole; of a chat the turns before the last user message, and the
documents. Never the system prompt, tool definitions and calls, the last user message and what
follows it, or the tokens that a chat template adds: a request is pruned before it is rendered.

A request that marks spans decides for itself: then only these are pruned.

    Answer from this text. <kprune keep="0.7">… long text …</kprune> Who wrote it?

The marks themselves are never sent to the model. A backslash before a mark makes it plain text.
"""

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vllm_kprune.errors import KPruneError

__all__ = [
    "ROLES",
    "MarkError",
    "Prune",
    "Segment",
    "documents_are_marked",
    "messages_are_marked",
    "prune_documents",
    "prune_messages",
    "prune_prompt",
    "split_marks",
]

# (text, keep rate of its mark or None) -> what is left of it
Prune = Callable[[str, float | None], str]

ROLES = ("user", "assistant")
_TEXT_PARTS = ("text", "input_text", "output_text")
_DOCUMENT_TEXTS = ("text", "content", "contents", "body", "passage", "snippet")
_MOST_SPANS = 2048
# Looked for from the first backslash of a run alone: a text of backslashes takes no longer.
_MARK = re.compile(r"(?<!\\)(?P<slashes>\\*+)<(?P<close>/?)kprune(?![\w-])")
_OPEN_REST = re.compile(r"""\s*(?:keep\s*=\s*(?P<q>["'])(?P<keep>[^"'<>]{0,32})(?P=q)\s*)?>""")
_CLOSE_REST = re.compile(r"\s*>")
_ESCAPE = r"write \<kprune> or \</kprune> for the text itself"


class MarkError(KPruneError):
    """Marks that do not pair up, or say something unknown."""


@dataclass(frozen=True)
class Segment:
    """A part of a text, without marks. `keep` is the rate that its mark names, if it does."""

    text: str
    marked: bool = False
    keep: float | None = None


def split_marks(text: str) -> list[Segment]:
    """Cut a text at its marks, and take their escapes away.

    >>> split_marks('a <kprune keep="0.5">b</kprune> c')
    [Segment(text='a ', marked=False, keep=None), Segment(text='b', marked=True, keep=0.5), \
Segment(text=' c', marked=False, keep=None)]

    Raises `MarkError` for a mark that is not closed, not opened, nested or misspelt.
    """
    segments: list[Segment] = []
    plain: list[str] = []
    opened: _Mark | None = None
    for count, item in enumerate(_read(text)):
        if isinstance(item, str):
            plain.append(item)
            continue
        if count > 4 * _MOST_SPANS:
            raise MarkError(f"more than {_MOST_SPANS} spans are marked in one text")
        _check_order(item, opened)
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
    """The text, with escapes taken away, and the marks in it, in turns."""
    at = 0
    for match in _MARK.finditer(text):
        slashes = len(match["slashes"])
        start = match.end("slashes")
        plain = text[at : match.start()] + "\\" * (slashes // 2)
        if slashes % 2:
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
            f"<kprune> at character {mark.start} is inside the one at {opened.start}; "
            "marks cannot be nested"
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
    if not 0 < keep <= 1:
        raise MarkError(
            f"<kprune> at character {at}: keep is {value!r}, expected a share above 0, at most 1"
        )
    return keep


def prune_prompt(prompt: str, prune: Prune, *, marks: bool = True, marked: bool = False) -> str:
    """Prune a plain prompt: its marked spans, or all of it.

    `marks` False takes marks for text. `marked` says that another part of the request has marks, so
    that a part without any is left as it is.
    """
    if not marks:
        return prune(prompt, None)
    segments = split_marks(prompt)
    if not marked and not any(segment.marked for segment in segments):
        return "".join(prune(segment.text, None) for segment in segments)
    return "".join(
        prune(segment.text, segment.keep) if segment.marked else segment.text
        for segment in segments
    )


def prune_messages(
    messages: Sequence[Mapping[str, Any]],
    prune: Prune,
    *,
    roles: Collection[str] = ROLES,
    marks: bool = True,
    marked: bool = False,
) -> list[dict[str, Any]]:
    """New messages with their texts pruned; what is no text (calls, images) is passed on.

    `roles` are those whose earlier messages are pruned where nothing is marked; see `prune_prompt`
    for `marks` and `marked`.
    """
    marked = marked or (marks and messages_are_marked(messages))
    users = [n for n, message in enumerate(messages) if message.get("role") == "user"]
    last = users[-1] if users else 0

    def pruned(number: int, message: Mapping[str, Any]) -> dict[str, Any]:
        earlier = number < last and message.get("role") in roles

        def change(text: str) -> str:
            if marked or earlier:
                return prune_prompt(text, prune, marks=marks, marked=marked)
            return "".join(part.text for part in split_marks(text)) if marks else text

        return _with_texts(message, change, ("content",))

    return [pruned(number, message) for number, message in enumerate(messages)]


def prune_documents(
    documents: Sequence[Mapping[str, Any]],
    prune: Prune,
    *,
    marks: bool = True,
    marked: bool = False,
) -> list[dict[str, Any]]:
    """New documents, each pruned by itself: its text, not its title or anything else."""
    marked = marked or (marks and documents_are_marked(documents))

    def change(text: str) -> str:
        return prune_prompt(text, prune, marks=marks, marked=marked)

    return [_with_texts(document, change, _DOCUMENT_TEXTS) for document in documents]


def messages_are_marked(messages: Sequence[Mapping[str, Any]]) -> bool:
    """Has any text of these messages a mark? `MarkError` for a malformed one."""
    return _marked(messages, ("content",))


def documents_are_marked(documents: Sequence[Mapping[str, Any]]) -> bool:
    """Has any text of these documents a mark? `MarkError` for a malformed one."""
    return _marked(documents, _DOCUMENT_TEXTS)


def _marked(parts: Sequence[Mapping[str, Any]], keys: Sequence[str]) -> bool:
    found = False

    def look(text: str) -> str:
        nonlocal found
        found |= any(segment.marked for segment in split_marks(text))
        return text

    for part in parts:
        _with_texts(part, look, keys)
    return found


def _with_texts(
    part: Mapping[str, Any], change: Callable[[str], str], keys: Sequence[str]
) -> dict[str, Any]:
    """A message or document with its texts changed: strings, and the texts in a list of parts."""
    changed = dict(part)
    for key in keys:
        value = part.get(key)
        if isinstance(value, str):
            changed[key] = change(value)
        elif isinstance(value, Sequence):
            changed[key] = [
                {**item, "text": change(item["text"])} if _is_text(item) else item for item in value
            ]
    return changed


def _is_text(item: Any) -> bool:
    return (
        isinstance(item, Mapping)
        and item.get("type", "text") in _TEXT_PARTS
        and isinstance(item.get("text"), str)
    )
