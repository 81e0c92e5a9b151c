"""The input pruner's numbers at `/metrics`, and in the headers of an answer.

They are ordinary metrics of `prometheus_client`, made in each API server after vLLM has chosen
between one process and several; so vLLM's own `/metrics` shows them, added up.
"""

from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache

from prometheus_client import Counter, Histogram

from vllm_kprune.serving.pruning.job import Outcome

__all__ = ["PruneMetrics", "RequestReport", "current_report", "prune_metrics"]

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_RATES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


@dataclass
class RequestReport:
    """What one HTTP request was told of: tokens of the target, over all of its prompts."""

    rendered: bool = False
    original: int = 0
    kept: int = 0
    segments: int = 0

    def add(self, seen: int, outcome: Outcome | None) -> None:
        """A rendered prompt of `seen` tokens, and what was pruned of it."""
        self.rendered = True
        self.kept += seen
        self.original += seen + (outcome.dropped if outcome else 0)
        self.segments += outcome.segments if outcome else 0


current_report: ContextVar[RequestReport | None] = ContextVar("kprune_report", default=None)


class PruneMetrics:
    """Make it once in a process: the registry refuses a name that it has."""

    def __init__(self) -> None:
        self._requests = Counter(
            "kprune_prune_requests",
            "Requests that asked for input pruning, by what became of it",
            ["outcome", "reason"],
        )
        self._original = Counter(
            "kprune_prune_original_tokens", "Prompt tokens of pruned requests before pruning"
        )
        self._kept = Counter(
            "kprune_prune_kept_tokens", "Prompt tokens of pruned requests that the model saw"
        )
        self._segments = Counter("kprune_prune_segments", "Segments that were shortened")
        self._cache = Counter(
            "kprune_prune_cache_lookups", "Segments looked for in the cache", ["result"]
        )
        self._seconds = Histogram(
            "kprune_prune_seconds", "Time to rank and cut one request's segments", buckets=_SECONDS
        )
        self._rate = Histogram(
            "kprune_prune_keep_rate", "Share of a pruned request's prompt kept", buckets=_RATES
        )

    def count(self, outcome: str, reason: str = "") -> None:
        """One request: pruned, skipped, failed or cancelled."""
        self._requests.labels(outcome, reason).inc()

    def done(self, outcome: Outcome) -> None:
        """A job that has ended."""
        self._cache.labels("hit").inc(outcome.hits)
        self._cache.labels("miss").inc(outcome.misses)
        if outcome.skipped:
            self.count("skipped", outcome.skipped)
            return
        self.count("pruned")
        self._segments.inc(outcome.segments)
        self._seconds.observe(outcome.seconds)

    def rendered(self, seen: int, outcome: Outcome) -> None:
        """A pruned request whose prompts have `seen` tokens now."""
        original = seen + outcome.dropped
        self._original.inc(original)
        self._kept.inc(seen)
        if original:
            self._rate.observe(seen / original)


@cache
def prune_metrics() -> PruneMetrics:
    """This process's."""
    return PruneMetrics()
