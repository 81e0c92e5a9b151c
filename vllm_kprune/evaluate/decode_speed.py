"""Decode speed of two servers, measured in turns on one machine.

A round measures both servers, one right after the other, and the next round in the other order
(A B, B A, A B, ...); the ratio is taken within the round, so that load which comes and goes falls
on both. One figure is the batch over the median time
from token to token of its sequences, as they stream in: no prefill in it, and a moment in which
something else had the cores does not decide. Greedy sampling without an early end, so both do the
same number of steps. A batch is one request with several prompts: one client, no threads.

What is compared is the whole step. Not only the LM head shrinks with the vocabulary but also the
float32 copy of the logits and the argmax over them; what does not shrink is vLLM's own work in
Python. With `--enforce-eager` that was a third of a step of the 270M model on two cores, compiled a
fifth: so a small model that runs eagerly gains less than its bytes promise.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from openai import OpenAI

__all__ = ["SETTLE_SECONDS", "Round", "SpeedComparison", "Target", "compare_speed", "step_times"]

# For a second after its last request a vLLM server spins, waiting for more, on the cores that the
# other one's threads need.
SETTLE_SECONDS = 1.2


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
    turns = []
    order = (0, 1)
    for target in (original, pruned):
        _measure(target, prompts, tokens=8)  # the first request of a shape is slower
    for number in range(rounds):
        rates = [0.0, 0.0]
        for turn, which in enumerate(order):
            if turn or not number:  # a round begins with the server that ended the one before
                time.sleep(SETTLE_SECONDS)
            rates[which] = _measure((original, pruned)[which], prompts, tokens)
        order = order[1], order[0]
        turns.append(Round(*rates))
        tell((number + 1) / rounds)
    return SpeedComparison(len(prompts), tokens, tuple(turns))


def step_times(arrivals: Iterable[tuple[float, int, int]]) -> list[float]:
    """Times per token from the arrival of pieces, each (time, sequence, tokens in it), in order.

    A busy server sends several tokens in one piece; each is then given its part of the time.

    >>> step_times([(0.0, 0, 1), (0.1, 1, 1), (0.5, 0, 1), (1.5, 0, 2)])
    [0.5, 0.5, 0.5]
    """
    last: dict[int, float] = {}
    times: list[float] = []
    for moment, sequence, tokens in arrivals:
        if sequence in last and tokens:
            times += [(moment - last[sequence]) / tokens] * tokens
        if tokens:
            last[sequence] = moment
    return times


def _measure(target: Target, prompts: Sequence[str], tokens: int) -> float:
    return len(prompts) / median(step_times(_arrivals(target, prompts, tokens)))


def _arrivals(
    target: Target, prompts: Sequence[str], tokens: int
) -> Iterator[tuple[float, int, int]]:
    pieces = target.client.completions.create(
        model=target.model,
        prompt=list(prompts),
        max_tokens=tokens,
        temperature=0,
        stream=True,
        extra_body={"ignore_eos": True, "return_token_ids": True},
    )
    for piece in pieces:
        moment = time.perf_counter()
        for choice in piece.choices:
            ids = (choice.model_extra or {}).get("token_ids") or ()
            yield moment, choice.index, len(ids)
