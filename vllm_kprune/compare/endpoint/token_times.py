"""The times between tokens of answers that stream in.

Times are taken per decode step as a whole. A smaller vocabulary shrinks the LM head, the float32
copy of the logits and the argmax over them, but not vLLM's own work in Python. With
`--enforce-eager`, that work was a third of a step of the 270M model on two cores; compiled, it was
a fifth. A small model that runs eagerly therefore gains less than its bytes suggest.
"""

from collections.abc import Iterable

__all__ = ["token_times"]


def token_times(arrivals: Iterable[tuple[float, int, int]]) -> list[float]:
    """Times per token from the arrivals of chunks, each (time, sequence, tokens in it), in order.

    A busy server sends several tokens in one chunk; each then gets an equal part of the time.

    >>> token_times([(0.0, 0, 1), (0.1, 1, 1), (0.5, 0, 1), (1.5, 0, 2)])
    [0.5, 0.5, 0.5]
    """
    last: dict[int, float] = {}
    times: list[float] = []
    for moment, sequence, tokens in arrivals:
        # The first token of a sequence has no gap: its time is that of the prefill.
        if sequence in last and tokens:
            times += [(moment - last[sequence]) / tokens] * tokens
        if tokens:
            # Chunks without a token (the role, the usage) do not start a gap.
            last[sequence] = moment
    return times
