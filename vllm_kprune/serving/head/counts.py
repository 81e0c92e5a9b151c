"""The profiles of a pruned head at `/metrics`: their rows, and how many requests chose each.

Counted where requests are admitted. With several API servers, `prometheus_client` adds up what each
of them counted.
"""

import os
from collections.abc import Mapping
from functools import cache
from typing import Any

from prometheus_client import Counter, Gauge

from vllm_kprune.checkpoint.head import HeadRows
from vllm_kprune.serving.environment import HEAD_PROFILES
from vllm_kprune.serving.request_options import HEAD_KEY

__all__ = ["count_request", "note_profiles", "show_requests"]


def note_profiles(rows: HeadRows) -> None:
    """Let this process, and those that it starts, count requests by these profiles."""
    pairs = zip(rows.profiles, rows.ends, strict=True)
    os.environ[HEAD_PROFILES] = "\n".join(f"{name}\t{end}" for name, end in pairs)


def show_requests() -> None:
    """Show the metrics with all profiles, before the first request."""
    _counter()


def count_request(extra_args: Any) -> None:
    """Count a request by the profile that it chose, or that it gets without a choice."""
    _counter().labels((extra_args or {}).get(HEAD_KEY, next(iter(_profiles())))).inc()


@cache
def _counter() -> Counter:
    counter = Counter(
        "kprune_head_requests", "Requests by the profile of their LM head", labelnames=["profile"]
    )
    rows = Gauge(
        "kprune_head_rows",
        "Rows of the LM head that a batch needs for requests of a profile",
        labelnames=["profile"],
        multiprocess_mode="max",
    )
    for name, end in _profiles().items():
        counter.labels(name)
        rows.labels(name).set(end)
    return counter


def _profiles() -> Mapping[str, int]:
    lines = os.environ[HEAD_PROFILES].split("\n")
    return {name: int(end) for name, _, end in (line.rpartition("\t") for line in lines)}
