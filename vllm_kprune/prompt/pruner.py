"""Prune prompts and chats from Python, without vLLM.

A long prompt loses its least important words before a model reads it, by the rules of a server:
phrases stay whole, words stay apart, and `<kprune>` marks and roles choose what may be pruned.
Nothing is cached here, and failures are raised.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict, Unpack

from vllm_kprune.checkpoint.model_folder import resolve_model
from vllm_kprune.errors import KPruneError, nearest
from vllm_kprune.prompt.options import PruneRequest, parse_prune_request
from vllm_kprune.prompt.pieces import Unit
from vllm_kprune.prompt.result import PrunedMessages, PrunedPrompt, PrunedSegment
from vllm_kprune.prompt.scorers import DEFAULT_SCORER, Scorer, ScorerSettings, make_scorer
from vllm_kprune.prompt.segments import RequestTexts, Segment
from vllm_kprune.prompt.text_pruner import TextPruner
from vllm_kprune.prompt.word_tokens import word_tokenizer

__all__ = ["InputPruner", "PruneKeywords"]

_DEFAULT_KEEP = 0.7


class PruneKeywords(TypedDict, total=False):
    """Options of one call, by the names that requests use; `kprune prompt --help` explains them.

    `keep` is 0.7 unless `target_tokens`, a number of tokens for each segment, takes its place.
    """

    keep: float
    target_tokens: int
    unit: Unit
    prune_layout: bool
    scorer: str
    force_tokens: Sequence[str]
    force_digits: bool
    force_first: int
    force_last: int
    min_tokens: int
    roles: Sequence[str]
    marks: bool


class InputPruner:
    """Prunes prompts with the tokens of a small model, or with words if no model is named.

    >>> pruner = InputPruner()
    >>> text = "The Rhine rises in the Swiss Alps and it flows into the North Sea after 1230 km."
    >>> pruned = pruner.prune(text, keep=0.7)
    >>> pruned.text.strip()
    'Rhine rises Swiss Alps it flows into North Sea after 1230 km'
    >>> pruned.tokens_before, pruned.tokens_after
    (18, 12)

    Give the folder or hub id of the model that will read the prompt, or of another one, to count in
    its tokens and to protect its control tokens:

        pruner = InputPruner("google/gemma-3-270m")
        pruner.prune_messages(messages, keep=0.5).messages

    Settings of scorers are `window` (tokens), `causal` and `precision` of `attention`, and `seed`
    of `random`. Options of a call are `keep` (0.7), `target_tokens`, `unit`, `scorer`,
    `prune_layout`, `force_tokens`, `force_digits`, `force_first`, `force_last`, `min_tokens`,
    `roles` and `marks`; `kprune prompt --help` explains them. Several threads may use one object at
    once.
    """

    def __init__(
        self,
        ranker: str | Path | None = None,
        *,
        scorer: str = DEFAULT_SCORER,
        **settings: Unpack[ScorerSettings],
    ) -> None:
        """Load a tokenizer, and of the ranker's weights only what `scorer` needs.

        Raises `KPruneError` for an unknown scorer or setting, or a model that cannot be found or
        cannot rank.
        """
        for name in settings:
            if name not in ScorerSettings.__annotations__:
                known = ScorerSettings.__annotations__
                raise KPruneError(f"InputPruner: unknown setting {name!r}; {nearest(name, known)}")
        if ranker is None:
            self._pruner = TextPruner(
                word_tokenizer(), lambda name: make_scorer(name, None, **settings), scorer
            )
            # Made now: a scorer that cannot work is an error here, not at the first prompt.
            self._pruner.scorer(scorer)
        else:
            folder = resolve_model(str(ranker))
            self._pruner = TextPruner.from_pretrained(folder, scorer=scorer, **settings)

    @property
    def scorer(self) -> Scorer:
        """The scorer of calls that name none."""
        return self._pruner.scorer()

    def prune(
        self, text: str, *, query: str | None = None, **options: Unpack[PruneKeywords]
    ) -> PrunedPrompt:
        """Prune a prompt: its marked spans, or all of it if it has no marks.

        `query` is the question, for scorers that use it. Raises `KPruneError` for an option that is
        unknown or out of range, and for malformed marks.
        """
        request = _checked(options)
        split = RequestTexts(prompt=text).split(marks=request.marks)
        parts: list[str | PrunedSegment] = []
        for segment, prunable in split.prompt_parts():
            pruned = self._segment(segment, request, query) if prunable else segment.text
            parts.append(pruned)
        return PrunedPrompt(parts)

    def prune_messages(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        documents: Sequence[Mapping[str, Any]] | None = None,
        query: str | None = None,
        **options: Unpack[PruneKeywords],
    ) -> PrunedMessages:
        """Prune a chat: its marked spans, or the turns before the last user message and documents.

        Messages are OpenAI's: a `role`, and a `content` that is a text or a list of parts. Unless a
        `query` is given, a message is pruned for the user message that follows it, and documents
        for the last one. Raises `KPruneError` as `prune` does.
        """
        request = _checked(options)
        split = RequestTexts(messages, documents).split(request.roles, marks=request.marks)
        segments: list[PrunedSegment] = []

        def prune(segment: Segment, asked: str | None) -> str:
            # Not `query or …`: an empty query says that there is no question.
            wanted = asked if query is None else query
            segments.append(self._segment(segment, request, wanted))
            return segments[-1].text

        texts = split.replaced(prune)
        return PrunedMessages(texts.messages or [], texts.documents, segments)

    def _segment(self, segment: Segment, request: PruneRequest, query: str | None) -> PrunedSegment:
        options = request.options.marked(segment.keep)
        return self._pruner.prune(segment.text, options, query=query)


def _checked(given: PruneKeywords) -> PruneRequest:
    options = {key: value for key, value in given.items() if value is not None}
    # Without this, the default of `keep`, 1, would leave every prompt whole.
    if not options.keys() & {"keep", "target_tokens"}:
        options["keep"] = _DEFAULT_KEEP
    return parse_prune_request(options)
