"""Times from token to token as answers stream in, and what a measurement in turns must wait for.

A decode step is compared as a whole. Not only the LM head shrinks with the vocabulary but also the
float32 copy of the logits and the argmax over them; what does not shrink is vLLM's own work in
Python. With `--enforce-eager` that was a third of a step of the 270M model on two cores, compiled a
fifth: so a small model that runs eagerly gains less than its bytes promise.
"""

from collections.abc import Iterable

__all__ = ["SETTLE_SECONDS", "step_times"]

# For a second after its last request a vLLM server spins, waiting for more, on the cores that the
# other one's threads need.
SETTLE_SECONDS = 1.2


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
