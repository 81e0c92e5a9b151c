"""What a run of the tests must keep: markers that tell what a test costs, and a limit of memory."""

from collections.abc import Iterable
from pathlib import Path

import pytest

# Who uses one of these fixtures pays for it. A test that asks for one by name while it runs
# (`getfixturevalue`) is not seen here: the fixtures of the servers refuse it themselves.
MARKED_BY = {
    "servers": "server",
    "original": "server",
    "pruned": "server",
    "enko": "slow",
    "pruned_tokenizers": "slow",
}
MAX_MEMORY_MB = 2048
EXHAUSTIVE = "--exhaustive"


def mark_by_fixtures(items: Iterable[pytest.Item]) -> None:
    """Mark tests by the costly fixtures that they use."""
    for item in items:
        for fixture in MARKED_BY.keys() & set(getattr(item, "fixturenames", ())):
            item.add_marker(MARKED_BY[fixture])


def skip_repetitions(items: Iterable[pytest.Item]) -> None:
    """Skip tests that are marked as repetitions of others on more tokenizers or engines."""
    for item in items:
        if item.get_closest_marker("exhaustive"):
            item.add_marker(pytest.mark.skip(reason=f"repeats other tests; {EXHAUSTIVE} runs it"))


def peak_memory_mb() -> int:
    """The most memory that this process held at once, without its children.

    It counts the pages of mapped files too: the limit is for what a machine must have.
    """
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) // 1024


def too_much_memory() -> str | None:
    """The message for a process that went over the limit."""
    peak = peak_memory_mb()
    if peak <= MAX_MEMORY_MB:
        return None
    return (
        f"the test process took {peak} MB, at most {MAX_MEMORY_MB} MB are allowed: run what loads "
        "models in a child (support/child.py), and give large fixtures a narrow scope"
    )
