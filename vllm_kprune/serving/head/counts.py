"""How many requests chose each profile of a pruned head, at `/metrics`.

Counted where requests are admitted. With several API servers, `prometheus_client` adds up what each
of them counted.
"""

import os
from collections.abc import Sequence
from functools import cache
from typing import Any

from prometheus_client import Counter

from vllm_kprune.serving.options import HEAD_PROFILES
from vllm_kprune.serving.request_options import HEAD_KEY

__all__ = ["count_request", "note_profiles", "show_requests"]


def note_profiles(names: Sequence[str]) -> None:
    """Let this process, and those that it starts, count requests by these profiles."""
    os.environ[HEAD_PROFILES] = "\n".join(names)


def show_requests() -> None:
    """Show the counter with all of its profiles, before the first request."""
    _counter()


def count_request(extra_args: Any) -> None:
    """Count a request by the profile that it chose, or that it gets without a choice."""
    names = os.environ[HEAD_PROFILES].split("\n")
    _counter().labels((extra_args or {}).get(HEAD_KEY, names[0])).inc()


@cache
def _counter() -> Counter:
    counter = Counter(
        "kprune_head_requests", "Requests by the profile of their LM head", labelnames=["profile"]
    )
    for name in os.environ[HEAD_PROFILES].split("\n"):
        counter.labels(name)
    return counter
