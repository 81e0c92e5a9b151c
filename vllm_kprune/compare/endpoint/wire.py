"""Answers in the format of the OpenAI API, with vLLM's additions.

A server's answer is untrusted input and is checked; `Malformed` says what is wrong with it. Fields
that a server leaves out stay None.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any

from pydantic import ValidationError

from vllm_kprune.compare.endpoint.messages import Answer
from vllm_kprune.compare.endpoint.reply import Choice, Lenient, Logprobs, PromptToken, Reply, Usage
from vllm_kprune.compare.endpoint.token_times import token_times

__all__ = ["Malformed", "StreamChunk", "read_answer", "read_chunk", "whole_answer"]


class Malformed(ValueError):
    """An answer that does not follow the API."""


class StreamChunk(Lenient):
    """A part of a streamed answer, and when it arrived (seconds of a monotonic clock)."""

    moment: float
    text: str
    tokens: int
    reasoning: str = ""
    tool_calls: tuple[str, ...] = ()
    ids: tuple[int, ...] | None = None
    finish_reason: str | None = None
    usage: Usage | None = None


def read_answer(value: Any, e2e_ms: float) -> Answer:
    """A complete answer from parsed JSON."""
    reply = _checked(value)
    if not reply.choices:
        raise Malformed("an answer without choices")
    # Servers may list the choices in any order.
    choice, *others = sorted(reply.choices, key=lambda choice: choice.index)
    usage = reply.usage or Usage()
    texts, logprobs, top = _places(choice.logprobs)
    return Answer(
        text=choice.words,
        reasoning=choice.thoughts,
        reasoning_tokens=usage.reasoning_tokens,
        tool_calls=choice.tools,
        finish_reason=choice.finish_reason,
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
        token_texts=texts,
        logprobs=logprobs,
        top=top,
        ids=choice.token_ids,
        # In completions, vLLM reports these in the choice, in chats beside the choices.
        prompt_ids=choice.prompt_token_ids or reply.prompt_token_ids,
        prompt_logprobs=_prompt_logprobs(choice, reply),
        e2e_ms=e2e_ms,
        others=tuple(choice.words for choice in others),
    )


def read_chunk(value: Any, moment: float) -> StreamChunk:
    """A chunk of a stream. Without ids, a chunk with text counts as one token (see `_untimed`)."""
    reply = _checked(value)
    choice = reply.choices[0] if reply.choices else Choice()
    some = bool(choice.words or choice.thoughts)
    return StreamChunk(
        moment=moment,
        text=choice.words,
        reasoning=choice.thoughts,
        tool_calls=choice.tools,
        tokens=int(some) if choice.token_ids is None else len(choice.token_ids),
        ids=choice.token_ids,
        finish_reason=choice.finish_reason,
        usage=reply.usage,
    )


def whole_answer(chunks: Sequence[StreamChunk], started: float) -> Answer:
    """The answer that the chunks make up; times count from `started`, in seconds of that clock."""
    if not chunks:
        raise Malformed("a stream without a chunk")
    # Chunks without a token (the role at the beginning, the usage at the end) have no time.
    arrived = [chunk.moment for chunk in chunks if chunk.tokens]
    usages = [chunk.usage for chunk in chunks if chunk.usage]
    usage = usages[-1] if usages else Usage()
    reasons = [chunk.finish_reason for chunk in chunks if chunk.finish_reason]
    reason = reasons[-1] if reasons else None
    # One chunk with tokens and without ids makes them all unknown: the rest would be shifted.
    ids = _joined(chunk.ids for chunk in chunks if chunk.tokens)
    untimed = _untimed(usage.completion_tokens, len(arrived), reason) if ids is None else None
    arrivals = ((chunk.moment, 0, chunk.tokens) for chunk in chunks)
    return Answer(
        text="".join(chunk.text for chunk in chunks),
        reasoning="".join(chunk.reasoning for chunk in chunks),
        reasoning_tokens=usage.reasoning_tokens,
        tool_calls=tuple(name for chunk in chunks for name in chunk.tool_calls),
        finish_reason=reason,
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
        ids=ids,
        ttft_ms=1000 * (arrived[0] - started) if arrived else None,
        itl_ms=() if untimed else tuple(1000 * time for time in token_times(arrivals)),
        e2e_ms=1000 * (chunks[-1].moment - started),
        untimed=untimed,
    )


def _untimed(tokens: int | None, chunks: int, reason: str | None) -> str | None:
    """Why the times between chunks are not the times between tokens; None if they are.

    A server may count the token that ended the answer, which has no text and no chunk of its own.
    """
    if tokens is None:
        return "reports neither token ids nor token counts, so that a chunk may be several tokens"
    # 12 tokens that ended with `stop` may come in 11 chunks.
    if chunks == tokens or (reason == "stop" and chunks == tokens - 1):
        return None
    few = chunks < tokens
    return "streams several tokens per chunk" if few else "streams tokens in several chunks"


def _checked(value: Any) -> Reply:
    try:
        return Reply.model_validate(value)
    except ValidationError as error:
        where = ".".join(map(str, error.errors()[0]["loc"]))
        raise Malformed(f"an answer with an invalid {where[:60] or 'structure'}") from None


def _places(
    found: Logprobs | None,
) -> tuple[tuple[str, ...] | None, tuple[float, ...] | None, tuple[dict[str, float], ...] | None]:
    """Tokens, their log-probabilities and the best tokens, from either format.

    Each is None if it is incomplete.
    """
    if found is None:
        return None, None, None
    if found.content is not None:
        texts = tuple(place.token for place in found.content)
        values: Sequence[float | None] = [place.logprob for place in found.content]
        # Tokens with the same text (parts of a character, shown as U+FFFD) become one here. With
        # `name_by_id` they stay apart.
        best = [
            {token.token: token.logprob for token in place.top_logprobs or ()}
            for place in found.content
        ]
    else:
        texts, values = found.tokens or (), found.token_logprobs or ()
        best = [place or {} for place in found.top_logprobs or ()]
    # A single missing or infinite value would shift all later ones, so it discards the whole list.
    known = tuple(value for value in values if value is not None and math.isfinite(value))
    if not texts or not len(texts) == len(known) == len(values):
        return None, None, None
    return texts, known, tuple(best) if len(best) == len(texts) and all(best) else None


def _prompt_logprobs(choice: Choice, reply: Reply) -> tuple[float | None, ...] | None:
    """Log-probabilities of the prompt's own tokens.

    They are found by their ids, or else come first, where vLLM puts them.
    """
    places = choice.prompt_logprobs or reply.prompt_logprobs
    if not places:
        return None
    ids: Sequence[int | None] = choice.prompt_token_ids or reply.prompt_token_ids or ()
    if len(ids) != len(places):
        ids = [None] * len(places)
    return tuple(_own(place, own) for place, own in zip(places, ids, strict=True))


def _own(place: dict[str, PromptToken] | None, own: int | None) -> float | None:
    if not place:
        return None
    # vLLM's keys are ids as text.
    token = place.get(str(own)) or next(iter(place.values()))
    return token.logprob if math.isfinite(token.logprob) else None


def _joined(parts: Iterable[tuple[int, ...] | None]) -> tuple[int, ...] | None:
    known = list(parts)
    if not known or any(part is None for part in known):
        return None
    return tuple(i for part in known for i in part or ())
