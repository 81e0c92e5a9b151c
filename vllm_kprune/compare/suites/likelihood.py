"""Log-probability of a continuation after a context, asked for in text alone.

The two sides have different tokenizers, so neither token ids nor a tokenizer of ours can be used.
And offsets into the text do not tell where the continuation begins: vLLM counts `<bos>` and writes
a replacement character for each byte of a character that is several tokens. Instead each endpoint
counts the context itself: one request has the context alone, for its number of tokens; another the
whole, for the log-probabilities of its prompt; the continuation is what lies beyond. This is how
lm-eval splits them too (`TemplateLM._encode_pair`), with the same limit: a token that reaches over
the border belongs to the context.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vllm_kprune.compare.endpoint.messages import Answer, Request

__all__ = ["Likelihood", "context_request", "likelihood", "split_space", "whole_request"]


@dataclass(frozen=True)
class Likelihood:
    """Sum of log-probabilities (nats) over `tokens` tokens of the endpoint's own."""

    total: float
    tokens: int

    @property
    def mean(self) -> float:
        """Nats per token."""
        return self.total / self.tokens


def context_request(context: str, seed: int, extra: Mapping[str, Any] | None = None) -> Request:
    """Asks how many tokens the context is."""
    return Request("completion", prompt=context, max_tokens=1, seed=seed, extra=extra or {})


def whole_request(
    context: str, continuation: str, seed: int, extra: Mapping[str, Any] | None = None
) -> Request:
    """Asks for the log-probabilities of context and continuation."""
    return Request(
        "completion",
        prompt=context + continuation,
        max_tokens=1,
        seed=seed,
        prompt_logprobs=0,
        extra=extra or {},
    )


def likelihood(context: Answer | None, whole: Answer) -> Likelihood | None:
    """What the two answers say of the continuation; None if an endpoint told too little.

    Without a context (None) only the first token goes uncounted: nothing can be said of it.
    """
    before = 1 if context is None else context.prompt_tokens
    if before is None or whole.prompt_logprobs is None:
        return None
    known = [value for value in whole.prompt_logprobs[before:] if value is not None]
    if not known or len(known) != len(whole.prompt_logprobs) - before:
        return None
    return Likelihood(sum(known), len(known))


def split_space(context: str, continuation: str) -> tuple[str, str]:
    """Move spaces at the end of the context to the continuation, whose token they belong to.

    >>> split_space("Answer: ", "yes")
    ('Answer:', ' yes')
    """
    kept = context.rstrip()
    return kept, context[len(kept) :] + continuation
