"""Memory of a server with all its processes, as the operating system sees it.

Linux counts *proportional* size (PSS): a page that several processes map, such as a library's, is
divided among them, so that the sum over a server is right and idle neighbours change little.
Elsewhere the resident sizes (RSS) are added up, which counts shared pages more than once.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass

from vllm_kprune.errors import KPruneError

__all__ = ["ServerMemory", "server_memory"]


@dataclass(frozen=True)
class ServerMemory:
    """Bytes in use by a process group, and how they were counted: `PSS` or `RSS`."""

    bytes: int
    kind: str
    processes: int


def server_memory(pid: int) -> ServerMemory:
    """Memory of the process group that `pid` leads."""
    sizes = list(_sizes(pid))
    kinds = {kind for _, kind in sizes}
    return ServerMemory(sum(size for size, _ in sizes), "+".join(sorted(kinds)), len(sizes))


def _sizes(leader: int) -> Iterator[tuple[int, str]]:
    try:
        import psutil
    except ModuleNotFoundError:
        raise KPruneError("psutil is missing; pip install 'vllm-kprune[demo]'") from None
    for process in psutil.process_iter():
        try:
            if os.getpgid(process.pid) == leader:
                full = process.memory_full_info()
                pss = getattr(full, "pss", None)
                yield (full.rss, "RSS") if pss is None else (pss, "PSS")
        except (ProcessLookupError, PermissionError, psutil.Error):
            continue  # ended meanwhile, or somebody else's
