"""What ranking costs and pruning saves: an estimate before it is begun, and the break-even.

One thread ranks for everybody, so what a single request may cost has a bound, and cheap requests
need not wait for dear ones. The estimate is for one core of the machine that the results page names
(docs/results.md, "Input pruning: speed"), on text with words that were not met before.

Reading a prompt of n tokens takes a + b n seconds, ranking it takes c + d n, and pruning it to a
share s saves b n (1 - s). So pruning pays above c / (b (1 - s) - d) tokens, or never if ranking a
token costs more than reading the dropped share of one.

With 1 ms to read a token, 20 ms + 0.1 ms per token to rank, and s = 0.7, each token gains
1 x 0.3 - 0.1 = 0.2 ms, and 20 ms are earned back after 100 tokens.
"""

from dataclasses import dataclass

__all__ = ["KEEP", "NEVER", "Line", "break_even_tokens", "ranking_seconds"]

NEVER = 10_000_000  # more tokens than any prompt has
KEEP = 0.7
# For a token: to rank it; with `attention`, and for each token that it looks at.
_TOKEN_SECONDS = 20e-6
_ATTENTION_SECONDS, _SEEN_SECONDS = 20e-6, 30e-9
# Scorers whose work grows with the square of a segment's length.
_QUADRATIC = frozenset({"attention"})


@dataclass(frozen=True)
class Line:
    """A time in seconds: `fixed + per_token * tokens`."""

    fixed: float
    per_token: float

    @classmethod
    def through(cls, short: tuple[int, float], long: tuple[int, float]) -> "Line":
        """The line through two (tokens, seconds). A slope below 0 is noise and becomes 0."""
        (n, seconds), (m, more) = short, long
        # With one length only (a tiny context) all of the time counts as time per token.
        slope = max((more - seconds) / (m - n), 0.0) if m > n else seconds / n
        return cls(max(seconds - slope * n, 0.0), slope)


def ranking_seconds(tokens: int, scorer: str, window: int | None = None) -> float:
    """About how many seconds one segment of so many tokens takes.

    >>> round(ranking_seconds(4096, "rarity"), 2), round(ranking_seconds(4096, "attention"), 2)
    (0.08, 0.67)
    """
    if scorer not in _QUADRATIC:
        return _TOKEN_SECONDS * tokens
    # Tokens before and after, each at most `window` away.
    seen = tokens if window is None else min(tokens, 2 * window)
    return (_TOKEN_SECONDS + _ATTENTION_SECONDS + _SEEN_SECONDS * seen) * tokens


def break_even_tokens(prefill: Line, ranking: Line, keep: float = KEEP) -> int | None:
    """The number of tokens from which pruning to `keep` saves time; None if it never does.

    >>> break_even_tokens(Line(0.0, 1e-3), Line(0.02, 1e-4), keep=0.7)
    100
    """
    gain = prefill.per_token * (1 - keep) - ranking.per_token
    if gain <= 0:
        return None
    # `prefill.fixed` does not matter: the prompt is read in any case, shorter or longer.
    tokens = round(ranking.fixed / gain)
    return tokens if tokens < NEVER else None
