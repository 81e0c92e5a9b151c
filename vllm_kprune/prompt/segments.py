r"""Decide which parts of a request may be pruned. Each of these segments is pruned by itself.

Without marks, a plain prompt is one segment. In a chat, the turns before the last user message and
the documents are segments. The system prompt, tool definitions and calls, the last user message and
everything after it, and the tokens of the chat template are never pruned: pruning comes before
the template is applied.

With marks anywhere in the request, only the marked spans are pruned:

>>> chat = [
...     {"role": "user", "content": "Hello. How are you?"},
...     {"role": "user", "content": 'Read <kprune keep="0.5">a long text</kprune>. Who wrote it?'},
... ]
>>> split = RequestTexts(messages=chat).split()
>>> split.prunable()
[Segment(text='a long text', marked=True, keep=0.5)]
>>> split.question
'Read . Who wrote it?'
>>> split.replaced(lambda segment, query: "a text").messages[1]["content"]
'Read a text. Who wrote it?'

A request is split once; everything later works on the `SplitRequest`.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, TypeVar

from vllm_kprune.prompt.marks import MarkError, Segment, split_marks

__all__ = [
    "ROLES",
    "MarkError",
    "RequestTexts",
    "Segment",
    "SplitRequest",
    "SplitText",
]

ROLES = ("user", "assistant")
# Parts of a chat message are `text`; those of the responses API are the other two.
_TEXT_PARTS = ("text", "input_text", "output_text")
_MESSAGE_TEXTS = ("content",)
_DOCUMENT_TEXTS = ("text", "content", "contents", "body", "passage", "snippet")
_EDGE = 16  # characters that tell whether the edge of a segment is still there
_LONGEST_QUERY = 4096  # characters, from the end: a question usually comes last

# A message or a document. Of a split request, its texts are `SplitText`.
Part = Mapping[str, Any]
T = TypeVar("T")


@dataclass(frozen=True)
class RequestTexts:
    """The texts of one request: chat messages and perhaps documents, or a plain prompt."""

    messages: Sequence[Part] | None = None
    documents: Sequence[Part] | None = None
    prompt: str | None = None

    def split(self, roles: Collection[str] = ROLES, *, marks: bool = True) -> "SplitRequest":
        """Split every text at its marks, once.

        `roles` are the roles whose earlier messages may be pruned when nothing is marked. Without
        `marks`, marks are ordinary text. Raises `MarkError` for malformed marks anywhere.
        """
        messages, documents = self.messages, self.documents
        return SplitRequest(
            messages=None if messages is None else _split_messages(messages, roles, marks),
            # `and` keeps None and an empty list as they are.
            documents=documents and _split_documents(documents, marks),
            prompt=None if self.prompt is None else _split_text(self.prompt, True, marks),
        )


@dataclass(frozen=True)
class SplitText:
    """A text cut at its marks. `whole`: it may be pruned if nothing in the request is marked.

    `query` is the question that it is pruned for.
    """

    segments: tuple[Segment, ...]
    whole: bool
    query: str | None = None

    @property
    def unmarked(self) -> str:
        """What is outside the marks."""
        return "".join(segment.text for segment in self.segments if not segment.marked)


@dataclass(frozen=True)
class SplitRequest:
    """The texts of one request, cut at their marks.

    `messages` and `documents` are as they were sent, but with a `SplitText` for each text.
    """

    messages: Sequence[Part] | None = None
    documents: Sequence[Part] | None = None
    prompt: SplitText | None = None

    @cached_property
    def marked(self) -> bool:
        """True if the request marks a span, so that only marked spans are pruned."""
        return any(segment.marked for text in self._texts() for segment in text.segments)

    @cached_property
    def question(self) -> str | None:
        """What the request asks: the last user message, or the prompt outside its marks.

        None if there is nothing outside, or a plain prompt without marks: any of it may be a
        question.
        """
        if self.prompt is not None:
            asked = self.prompt.unmarked if self.marked else ""
        else:
            asked = _last_question(self.messages or ())
        return asked[-_LONGEST_QUERY:] or None

    def prunable(self) -> list[Segment]:
        """The segments that may be pruned, in the order in which `replaced` asks for them."""
        texts = self._texts()
        return [segment for text in texts for segment in text.segments if self._may(text, segment)]

    def prompt_parts(self) -> list[tuple[Segment, bool]]:
        """The segments of the plain prompt, and whether each may be pruned."""
        text = self.prompt
        return [] if text is None else [(s, self._may(text, s)) for s in text.segments]

    def replaced(self, prune: Callable[[Segment, str | None], str]) -> RequestTexts:
        """The request without marks and with `prune(segment, query)` for each prunable segment.

        `query` is the question of the turn in which the segment is pruned first: of a message with
        marks what it says outside them, of others the next user message. So it is the same in
        every later turn of a chat, and prefix caches hit. Documents are pruned for the last one.
        """

        def join(text: SplitText) -> str:
            query = text.query or self.question
            return _together(
                (s.text, prune(s, query) if self._may(text, s) else s.text) for s in text.segments
            )

        messages, documents = self.messages, self.documents
        return RequestTexts(
            messages=None if messages is None else _joined(messages, join, _MESSAGE_TEXTS),
            documents=documents and _joined(documents, join, _DOCUMENT_TEXTS),
            prompt=None if self.prompt is None else join(self.prompt),
        )

    def without_marks(self) -> RequestTexts:
        """The request with its marks removed and nothing pruned."""
        return self.replaced(lambda segment, query: segment.text)

    def _may(self, text: SplitText, segment: Segment) -> bool:
        return segment.marked or (text.whole and not self.marked)

    def _texts(self) -> Iterator[SplitText]:
        for message in self.messages or ():
            yield from _texts_of(message, _MESSAGE_TEXTS)
        for document in self.documents or ():
            yield from _texts_of(document, _DOCUMENT_TEXTS)
        if self.prompt is not None:
            yield self.prompt


def _together(parts: Iterable[tuple[str, str]]) -> str:
    """Segments before and after pruning, joined; words that did not touch before stay apart.

    >>> _together([("the cat sat", "cat"), ("down", "down")])
    'cat down'
    """
    found, whole = "", True
    for before, after in parts:
        touches = whole and before.startswith(after[:_EDGE])
        if found[-1:].isalnum() and after[:1].isalnum() and not touches:
            found += " "
        found += after
        whole = before.endswith(after[-_EDGE:])
    return found


def _split_text(text: str, whole: bool, marks: bool) -> SplitText:
    plain = [Segment(text)] if text else []
    return SplitText(tuple(split_marks(text) if marks else plain), whole)


def _split_messages(
    messages: Sequence[Part], roles: Collection[str], marks: bool
) -> list[dict[str, Any]]:
    users = [n for n, message in enumerate(messages) if message.get("role") == "user"]
    last = users[-1] if users else 0  # no user: nothing is before the last user message
    found = []
    for number, message in enumerate(messages):
        whole = number < last and message.get("role") in roles

        def split(text: str, whole: bool = whole) -> SplitText:
            return _split_text(text, whole, marks)

        found.append(_with_texts(message, split, _MESSAGE_TEXTS, str))
    return _with_queries(found)


def _with_queries(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The messages, each text with the question that it is pruned for."""
    found: list[dict[str, Any]] = []
    following = ""
    for message in reversed(messages):
        texts = _texts_of(message, _MESSAGE_TEXTS)
        own = "\n".join(text.unmarked for text in texts) if message.get("role") == "user" else ""
        marked = any(segment.marked for text in texts for segment in text.segments)
        query = (own if marked and own.strip() else following)[-_LONGEST_QUERY:] or None

        def asked(text: SplitText, query: str | None = query) -> SplitText:
            return replace(text, query=query)

        found.append(_with_texts(message, asked, _MESSAGE_TEXTS, SplitText))
        following = own if own.strip() else following
    return found[::-1]


def _split_documents(documents: Sequence[Part], marks: bool) -> list[dict[str, Any]]:
    """Split each document's text; its title and everything else stay as they are."""

    def split(text: str) -> SplitText:
        return _split_text(text, True, marks)

    return [_with_texts(document, split, _DOCUMENT_TEXTS, str) for document in documents]


def _joined(
    parts: Sequence[Part], join: Callable[[SplitText], str], keys: Sequence[str]
) -> list[dict[str, Any]]:
    return [_with_texts(part, join, keys, SplitText) for part in parts]


def _texts_of(part: Part, keys: Sequence[str]) -> list[SplitText]:
    # The walk that changes texts also finds them, so `prunable` and `replaced` agree on order.
    found: list[SplitText] = []
    _with_texts(part, found.append, keys, SplitText)
    return found


def _last_question(messages: Sequence[Part]) -> str:
    users = (message for message in reversed(messages) if message.get("role") == "user")
    last = next(users, None)
    texts = [] if last is None else _texts_of(last, _MESSAGE_TEXTS)
    return "\n".join(text.unmarked for text in texts)


def _with_texts(
    part: Part, change: Callable[[T], Any], keys: Sequence[str], kind: type[T]
) -> dict[str, Any]:
    """A copy of a message or document with `change` applied to its texts.

    A text, of type `kind`, is a value itself or the text of an item in a list of parts. Everything
    else, such as images and tool calls, is passed on.
    """
    changed = dict(part)
    for key in keys:
        value = part.get(key)
        # A str is a sequence too. It never reaches the second branch: under these keys it is a
        # text, so it has become a SplitText where `kind` is not str.
        if isinstance(value, kind):
            changed[key] = change(value)
        elif isinstance(value, Sequence):
            changed[key] = [
                {**item, "text": change(item["text"])} if _is_text(item, kind) else item
                for item in value
            ]
    return changed


def _is_text(item: Any, kind: type) -> bool:
    return (
        isinstance(item, Mapping)
        and item.get("type", "text") in _TEXT_PARTS
        and isinstance(item.get("text"), kind)
    )
