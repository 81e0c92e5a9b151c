"""How long ranking a request's texts takes, estimated before it is begun.

One thread ranks for everybody, so what a single request may cost has a bound, and cheap requests
need not wait for dear ones. The figures are those of one core of the machine that the results page
names (docs/results.md): 12 microseconds for a token, and for `attention`, where each token looks at
all others, as much again for every 400 of these.
"""

__all__ = ["ranking_seconds"]

_TOKEN_SECONDS = 12e-6
_TOKENS_SEEN_AT_ONCE = 400
# Scorers whose work grows with the square of a segment's length.
_QUADRATIC = frozenset({"attention"})


def ranking_seconds(tokens: int, scorer: str, window: int | None = None) -> float:
    """About how many seconds one segment of so many tokens takes.

    >>> round(ranking_seconds(4096, "rarity"), 2), round(ranking_seconds(4096, "attention"), 2)
    (0.05, 0.55)
    """
    seen = 0
    if scorer in _QUADRATIC:
        # Tokens before and after, each at most `window` away.
        seen = tokens if window is None else min(tokens, 2 * window)
    return _TOKEN_SECONDS * tokens * (1 + seen / _TOKENS_SEEN_AT_ONCE)
