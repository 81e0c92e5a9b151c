"""The memory of a server with all its processes, as the operating system reports it.

On Linux, the *proportional* size (PSS) divides a page that several processes map, such as one of a
library, among them. The sum over a server is therefore right, and idle processes change little.
Elsewhere the resident sizes (RSS) are added up, which counts shared pages more than once.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from types import ModuleType
from typing import Any
from urllib.parse import urlsplit

from vllm_kprune.errors import KPruneError

__all__ = ["ServerMemory", "listener", "tree_memory"]


@dataclass(frozen=True)
class ServerMemory:
    """Bytes that processes use, and how they were counted: `PSS` or `RSS`."""

    bytes: int
    kind: str
    processes: int


def listener(url: str) -> int:
    """The process that listens on the port of a URL; 0 if the system hides it.

    Raises `KPruneError` if there is none, or the system does not tell.
    """
    psutil = _psutil()
    parts = urlsplit(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        for connection in psutil.net_connections("tcp"):
            address = connection.laddr
            # Clients of the server have its port as well, but as the other end.
            if connection.status == psutil.CONN_LISTEN and address and address.port == port:
                return connection.pid or 0
    except psutil.Error as error:
        raise KPruneError(
            f"this system does not report which process listens on port {port}: {error}"
        ) from None
    raise KPruneError(f"no process listens on port {port}")


def tree_memory(pid: int) -> ServerMemory:
    """The memory of a process and all its descendants."""
    psutil = _psutil()
    try:
        # vLLM's engine and its workers are children, so the sum is over the whole tree.
        root = psutil.Process(pid)
        return _summed([root, *root.children(recursive=True)])
    except psutil.NoSuchProcess:
        return _summed([])


def _summed(processes: Iterable[Any]) -> ServerMemory:
    sizes = [size for process in processes if (size := _size(process))]
    kinds = {kind for _, kind in sizes}
    return ServerMemory(sum(size for size, _ in sizes), "+".join(sorted(kinds)), len(sizes))


def _size(process: Any) -> tuple[int, str] | None:
    """Bytes, and how they were counted; None if the process ended or belongs to another user."""
    try:
        full = process.memory_full_info()
    except (ProcessLookupError, PermissionError, _psutil().Error):
        return None
    # psutil has the field on Linux only.
    pss = getattr(full, "pss", None)
    return (full.rss, "RSS") if pss is None else (pss, "PSS")


def _psutil() -> ModuleType:
    try:
        import psutil
    except ModuleNotFoundError:
        raise KPruneError("psutil is missing; pip install 'vllm-kprune[compare]'") from None
    return psutil
