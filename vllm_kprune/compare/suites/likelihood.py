"""The log-probability of a continuation after a context, requested as text only.

The two sides have different tokenizers, so neither token ids nor a tokenizer of our own can be
used. Text offsets do not tell where the continuation begins either: vLLM counts `<bos>`, and writes
a replacement character for each byte of a character that spans several tokens. Instead, each
endpoint counts the tokens of the context. One request has only the context and gives its number of
tokens; another has the whole text and gives the log-probabilities of its prompt. The continuation
is everything beyond the context. lm-eval splits them the same way (`TemplateLM._encode_pair`), with
the same limitation: a token that spans the border belongs to the context.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vllm_kprune.compare.endpoint.messages import Answer, Request

__all__ = ["Likelihood", "context_request", "likelihood", "split_space", "whole_request"]


@dataclass(frozen=True)
class Likelihood:
    """The sum of log-probabilities (nats) over `tokens` tokens, as the endpoint counts them."""

    total: float
    tokens: int

    @property
    def mean(self) -> float:
        """Nats per token."""
        return self.total / self.tokens


def context_request(context: str, seed: int, extra: Mapping[str, Any] | None = None) -> Request:
    """A request for the number of tokens of the context."""
    return Request("completion", prompt=context, max_tokens=1, seed=seed, extra=extra or {})


def whole_request(
    context: str, continuation: str, seed: int, extra: Mapping[str, Any] | None = None
) -> Request:
    """A request for the log-probabilities of context and continuation."""
    return Request(
        "completion",
        prompt=context + continuation,
        max_tokens=1,
        seed=seed,
        prompt_logprobs=0,
        extra=extra or {},
    )


def likelihood(context: Answer | None, whole: Answer) -> Likelihood | None:
    """The likelihood of the continuation; None if the endpoint reported too little.

    Without a context (None), everything but the first token counts, as the first one has no
    log-probability.
    """
    # Counted by the endpoint itself, so `<bos>` and the like are included on both requests alike.
    before = 1 if context is None else context.prompt_tokens
    if before is None or whole.prompt_logprobs is None:
        return None
    # Index i belongs to token i of the prompt; index 0 is None.
    known = [value for value in whole.prompt_logprobs[before:] if value is not None]
    # A gap among the tokens of the continuation would make it look more likely than it is.
    if not known or len(known) != len(whole.prompt_logprobs) - before:
        return None
    return Likelihood(sum(known), len(known))


def split_space(context: str, continuation: str) -> tuple[str, str]:
    """Move spaces at the end of the context to the continuation, whose first token includes them.

    >>> split_space("Answer: ", "yes")
    ('Answer:', ' yes')
    """
    kept = context.rstrip()
    return kept, context[len(kept) :] + continuation
