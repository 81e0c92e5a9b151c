"""The texts of one request: chat messages with documents, or a plain prompt; and their segments."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from vllm_kprune.prompt.options import PruneRequest
from vllm_kprune.prompt.segments import (
    Prune,
    documents_are_marked,
    messages_are_marked,
    prune_documents,
    prune_messages,
    prune_prompt,
    split_marks,
)

__all__ = ["RequestTexts"]

_LONGEST_QUERY = 4096  # characters; what is asked usually comes last


@dataclass(frozen=True)
class RequestTexts:
    """A `prompt`, or `messages` and perhaps `documents`; None where there is no such part."""

    messages: Sequence[Mapping[str, Any]] | None = None
    documents: Sequence[Mapping[str, Any]] | None = None
    prompt: str | None = None

    def is_marked(self, request: PruneRequest) -> bool:
        """Has any text a <kprune> mark? `MarkError` for malformed ones."""
        if not request.marks:
            return False
        found = [
            messages_are_marked(self.messages or ()),
            documents_are_marked(self.documents or ()),
        ]
        if self.prompt is not None:
            found.append(any(segment.marked for segment in split_marks(self.prompt)))
        return any(found)

    def apply(self, prune: Prune, request: PruneRequest) -> "RequestTexts":
        """With every segment that may be pruned replaced by `prune(text, keep of its mark)`."""
        if self.prompt is not None:
            return replace(self, prompt=prune_prompt(self.prompt, prune, marks=request.marks))
        how: dict[str, Any] = {"marks": request.marks, "marked": self.is_marked(request)}
        messages = prune_messages(self.messages or (), prune, roles=request.roles, **how)
        documents = self.documents and prune_documents(self.documents, prune, **how)
        return replace(self, messages=messages, documents=documents)

    def without_marks(self, request: PruneRequest) -> "RequestTexts":
        """With nothing pruned, and the marks taken away."""
        return self.apply(lambda text, keep: text, request)

    def query(self, request: PruneRequest) -> str | None:
        """What is asked, for scorers that look from there: the last user message, unmarked.

        Of a plain prompt what is not marked; None without marks: the prompt is all there is.
        """
        marked = self.is_marked(request)
        if self.prompt is not None:
            return _unmarked(self.prompt) or None if marked else None
        text = _last_question(self.messages or ())
        return _unmarked(text) if marked and text is not None else text and text[-_LONGEST_QUERY:]


def _unmarked(text: str) -> str:
    plain = "".join(segment.text for segment in split_marks(text) if not segment.marked)
    return plain[-_LONGEST_QUERY:]


def _last_question(messages: Sequence[Mapping[str, Any]]) -> str | None:
    content = next((m.get("content") for m in reversed(messages) if m.get("role") == "user"), None)
    if isinstance(content, list | tuple):
        texts = (part.get("text") for part in content if isinstance(part, Mapping))
        content = "\n".join(text for text in texts if isinstance(text, str))
    return content if isinstance(content, str) and content else None
