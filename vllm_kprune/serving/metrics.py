"""The guard's counts at `/metrics`, on every API server of a process group.

With several API servers vLLM shows a registry of its own making that knows only counters of
`prometheus_client`'s multi-process files; so the collector is added to whichever registry is shown.
"""

from collections.abc import Iterator
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

from vllm_kprune.serving.counters import counter_folder, read_totals

__all__ = ["GuardCollector", "add_collector"]

_METRICS = {
    "requests": (
        "kprune_guard_requests",
        "Guarded answers begun (each of n, each step of a beam), by language set",
    ),
    "changed_steps": (
        "kprune_guard_changed_steps",
        "Decode steps at which the guard refused the most likely token, by language set",
    ),
    "dead_ends": (
        "kprune_guard_dead_ends",
        "Answers ended because guard and grammar together left no token, by language set",
    ),
}


class GuardCollector(Collector):
    """Reads the counter files at every scrape."""

    def collect(self) -> Iterator[Any]:
        """One counter family for each of the three counts."""
        totals = read_totals(counter_folder())
        for counter, (name, help) in _METRICS.items():
            family = CounterMetricFamily(name, help, labels=["languages"])
            for label, numbers in sorted(totals.items()):
                family.add_metric([label], numbers[counter])
            yield family

    def describe(self) -> Iterator[Any]:
        """The families without numbers: registering reads nothing."""
        for name, help in _METRICS.values():
            yield CounterMetricFamily(name, help, labels=["languages"])


def add_collector(registry: CollectorRegistry) -> None:
    """Show the guard's counts in a registry, once, if this server has a guard."""
    if counter_folder() and not getattr(registry, _ADDED, False):
        registry.register(GuardCollector())
        setattr(registry, _ADDED, True)


_ADDED = "kprune_guard_is_shown"
