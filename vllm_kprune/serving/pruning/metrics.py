"""The input pruner's numbers, at `/metrics` and in the headers of an answer.

They are ordinary metrics of `prometheus_client`, made in each API server after vLLM has chosen
between one process and several. So vLLM's own `/metrics` shows them, summed over processes.
"""

from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache

from prometheus_client import Counter, Histogram

from vllm_kprune.serving.pruning.job import PrunedRequest

__all__ = ["PruneMetrics", "RequestReport", "current_report", "prune_metrics"]

# Upper bounds of histogram buckets: seconds, and shares of a prompt.
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_RATES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


@dataclass
class RequestReport:
    """What one HTTP request is told: tokens of the target model, summed over its prompts."""

    rendered: bool = False
    original: int = 0
    kept: int = 0
    segments: int = 0

    def add(self, seen: int, pruned: PrunedRequest | None) -> None:
        """Add a prompt that was rendered to `seen` tokens, after the job `pruned` if one ran."""
        self.rendered = True
        self.kept += seen
        # Not counted before pruning: that would render and tokenize every prompt twice.
        self.original += seen + (pruned.dropped if pruned else 0)
        self.segments += pruned.segments if pruned else 0


current_report: ContextVar[RequestReport | None] = ContextVar("kprune_report", default=None)


class PruneMetrics:
    """Make only one in a process: the registry refuses a name that it has already."""

    def __init__(self) -> None:
        self._requests = Counter(
            "kprune_prune_requests",
            "Requests that asked for input pruning, by outcome",
            ["outcome", "reason"],
        )
        self._original = Counter(
            "kprune_prune_original_tokens", "Prompt tokens of pruned requests before pruning"
        )
        self._kept = Counter(
            "kprune_prune_kept_tokens", "Prompt tokens of pruned requests that the model saw"
        )
        self._segments = Counter("kprune_prune_segments", "Segments that were shortened")
        self._whole = Counter(
            "kprune_prune_segments_left_whole",
            "Segments that were left whole because their layout matters, by what they are",
            ["layout"],
        )
        self._cache = Counter(
            "kprune_prune_cache_lookups", "Look-ups of segments in the cache", ["result"]
        )
        self._seconds = Histogram(
            "kprune_prune_seconds",
            "Seconds to rank and cut the segments of one request",
            buckets=_SECONDS,
        )
        self._rate = Histogram(
            "kprune_prune_keep_rate",
            "Share of its prompt that a pruned request kept",
            buckets=_RATES,
        )

    def count(self, outcome: str, reason: str = "") -> None:
        """Count a request that was pruned, skipped, failed or cancelled."""
        self._requests.labels(outcome, reason).inc()

    def done(self, pruned: PrunedRequest) -> None:
        """Count a job that has ended."""
        self._cache.labels("hit").inc(pruned.hits)
        self._cache.labels("miss").inc(pruned.misses)
        if pruned.skipped:
            self.count("skipped", pruned.skipped)
            return
        self.count("pruned")
        self._segments.inc(pruned.segments)
        for layout, segments in pruned.layouts.items():
            self._whole.labels(layout).inc(segments)
        self._seconds.observe(pruned.seconds)

    def rendered(self, seen: int, pruned: PrunedRequest) -> None:
        """Count the tokens of a pruned request whose prompts now have `seen` tokens."""
        original = seen + pruned.dropped
        self._original.inc(original)
        self._kept.inc(seen)
        if original:
            self._rate.observe(seen / original)


@cache
def prune_metrics() -> PruneMetrics:
    """The metrics of this process."""
    return PruneMetrics()
