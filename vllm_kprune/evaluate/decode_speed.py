"""Decode speed of two servers, measured in turns on one machine.

A round measures both servers, in random order, one after the other; the ratio is taken within the
round, so that load which comes and goes falls on both. One figure is the time of a request for many
tokens less that of the same request for one token (prefill and HTTP), with greedy sampling and no
early end. A batch is one request with several prompts: no client threads compete for the cores.

What is compared is the whole step. Not only the LM head shrinks with the vocabulary but also the
float32 copy of the logits and the argmax over them; what does not shrink is vLLM's own work in
Python, so a small model with `--enforce-eager` gains somewhat less than its bytes promise.
"""

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from openai import OpenAI

__all__ = ["Round", "SpeedComparison", "Target", "compare_speed", "decode_rate"]


@dataclass(frozen=True)
class Target:
    """A served model: a client for its server, and the name it answers under."""

    client: "OpenAI"
    model: str


@dataclass(frozen=True)
class Round:
    """Decode tokens per second of both models, measured one right after the other."""

    original: float
    pruned: float

    @property
    def ratio(self) -> float:
        """Speed of the pruned model over that of the original."""
        return self.pruned / self.original


@dataclass(frozen=True)
class SpeedComparison:
    """All rounds at one batch size."""

    batch: int
    tokens: int
    rounds: tuple[Round, ...]

    @property
    def original(self) -> float:
        """Median tokens per second of the original, over all sequences of the batch."""
        return median(turn.original for turn in self.rounds)

    @property
    def pruned(self) -> float:
        """Median tokens per second of the pruned model."""
        return median(turn.pruned for turn in self.rounds)

    @property
    def ratio(self) -> float:
        """Median of the rounds' ratios, which is not the ratio of the medians."""
        return median(turn.ratio for turn in self.rounds)

    @property
    def ratio_range(self) -> tuple[float, float]:
        """Least and greatest ratio of a round."""
        ratios = [turn.ratio for turn in self.rounds]
        return min(ratios), max(ratios)


def compare_speed(
    original: Target,
    pruned: Target,
    prompts: Sequence[str],
    *,
    tokens: int,
    rounds: int,
    tell: Callable[[float], None] = lambda share: None,
) -> SpeedComparison:
    """Measure both in turns; the batch is `prompts`. `tell` gets the share done, from 0 to 1."""
    order = random.Random(0)
    turns = []
    for target in (original, pruned):
        _timed(target, prompts, tokens=8)  # the first request of a shape is slower
    for number in range(rounds):
        rates = [0.0, 0.0]
        for which in order.sample((0, 1), 2):
            rates[which] = _measure((original, pruned)[which], prompts, tokens)
        turns.append(Round(*rates))
        tell((number + 1) / rounds)
    return SpeedComparison(len(prompts), tokens, tuple(turns))


def decode_rate(batch: int, tokens: int, full_seconds: float, first_seconds: float) -> float:
    """Tokens per second after the first token of each sequence.

    >>> decode_rate(batch=8, tokens=65, full_seconds=2.2, first_seconds=0.2)
    256.0
    """
    return batch * (tokens - 1) / (full_seconds - first_seconds)


def _measure(target: Target, prompts: Sequence[str], tokens: int) -> float:
    first = _timed(target, prompts, tokens=1)
    return decode_rate(len(prompts), tokens, _timed(target, prompts, tokens), first)


def _timed(target: Target, prompts: Sequence[str], tokens: int) -> float:
    start = time.perf_counter()
    target.client.completions.create(
        model=target.model,
        prompt=list(prompts),
        max_tokens=tokens,
        temperature=0,
        extra_body={"ignore_eos": True},
    )
    return time.perf_counter() - start
