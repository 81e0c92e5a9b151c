"""The guard's counts at `/metrics`, on every API server of a process group.

With one API server, a collector joins the registry that vLLM shows. With several, vLLM makes a
registry for each scrape, from `prometheus_client`'s multi-process files alone; the collector of
these files then yields ours as well.
"""

import os
from collections.abc import Callable, Iterator
from typing import Any

from prometheus_client import CollectorRegistry, multiprocess
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

from vllm_kprune.serving.compat.imports import wrap
from vllm_kprune.serving.counter_files import counter_folder
from vllm_kprune.serving.guard.counters import REASONING, read_totals

__all__ = ["GuardCollector", "show_counts"]

# Of each counter: its name and help, and whether it counts reasoning and answer apart.
_METRICS = {
    "requests": (
        "kprune_guard_requests",
        "Guarded answers begun (each of n, each step of a beam), by language set",
        False,
    ),
    "changed_steps": (
        "kprune_guard_changed_steps",
        "Tokens in place of which the guard refused a more likely one, by language set and phase",
        True,
    ),
    "dead_ends": (
        "kprune_guard_dead_ends",
        "Answers that ended because guard and grammar left no token, by language set and phase",
        True,
    ),
}


class GuardCollector(Collector):
    """Reads the counter files at every scrape."""

    def collect(self) -> Iterator[Any]:
        """One counter family for each of the three counts."""
        totals = read_totals(counter_folder())
        for counter, (name, help, by_phase) in _METRICS.items():
            family = CounterMetricFamily(name, help, labels=_labels(by_phase))
            for label, numbers in sorted(totals.items()):
                languages = label.removeprefix(REASONING)
                phase = "answer" if languages == label else "reasoning"
                if by_phase or phase == "answer":  # no requests are counted as reasoning
                    family.add_metric([languages, phase][: 1 + by_phase], numbers[counter])
            yield family

    def describe(self) -> Iterator[Any]:
        """The families without numbers, so that registering reads no files."""
        for name, help, by_phase in _METRICS.values():
            yield CounterMetricFamily(name, help, labels=_labels(by_phase))


def _labels(by_phase: bool) -> list[str]:
    return ["languages", "phase"] if by_phase else ["languages"]


def show_counts(registry: CollectorRegistry) -> None:
    """Show the guard's counts where `registry` is shown, once, if this server has a guard."""
    if counter_folder() is None:
        return
    # `prometheus_client` itself goes by this variable. Registering on a registry that lives for one
    # scrape would not help, so the class is wrapped: once, `wrap` sees to that.
    if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
        wrap(multiprocess.MultiProcessCollector, "collect", _collect_all)
    # The wrapped vLLM function is called more than once, and always returns the same registry here.
    elif not getattr(registry, _SHOWN, False):
        registry.register(GuardCollector())
        setattr(registry, _SHOWN, True)


_SHOWN = "kprune_guard_is_shown"


def _collect_all(original: Callable[..., Any], collector: Any) -> Iterator[Any]:
    yield from original(collector)
    yield from GuardCollector().collect()
