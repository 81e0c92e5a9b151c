"""Memory of both sides: weights on disk and loaded, the vocabulary's part, processes, cache room.

Each figure has its own source, and where there is none, a reason: weights from the headers of the
model folders (named by the user, or told by a server on this machine at `/v1/models`), the
vocabulary from `/kprune`, the room of the KV cache from `/metrics`, processes from the operating
system where the server is on this machine. Nothing is sampled, so nothing has an interval. An
overlay cannot be served without its base's weight files; they are counted for it too.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import numpy as np

from vllm_kprune.checkpoint.base import open_base
from vllm_kprune.checkpoint.manifest import is_overlay, load_manifest
from vllm_kprune.compare.endpoint.messages import Endpoint
from vllm_kprune.compare.measurements import Measurement, Metric, SuiteResult
from vllm_kprune.compare.run import Context
from vllm_kprune.compare.suites.model_folders import FolderUnknown, model_folder
from vllm_kprune.compare.suites.server_memory import tree_memory
from vllm_kprune.compare.suites.sizes import model_sizes
from vllm_kprune.errors import KPruneError

__all__ = ["Memory", "Side", "cache_tokens"]

_CACHE_CONFIG = re.compile(r"^vllm:cache_config_info\{([^\n]{0,20000})\}", re.M)
_LABEL = re.compile(r'(\w{1,100})="([^"\\]{0,1000})"')
# An overlay adds its own files, some MB, to those of its base.
_MARGIN = 0.02


@dataclass(frozen=True)
class Side:
    """What one endpoint and its folder (or why it is not known) tell; None: it tells nothing."""

    endpoint: Endpoint
    folder: Path | FolderUnknown
    kprune: Any
    metrics: Any

    @property
    def name(self) -> str:
        """`original` or `pruned`."""
        return self.endpoint.name


@dataclass(frozen=True)
class Memory:
    """The suite `memory`."""

    name: str = "memory"
    metrics: tuple[str, ...] = (
        "weights_loaded",
        "weights_disk",
        "vocabulary",
        "processes",
        "kv_cache",
    )
    help: str = "weights on disk and loaded, vocabulary, process memory, room of the KV cache"

    def run(self, context: Context) -> SuiteResult:
        """Look every figure up on both sides."""
        original, pruned = (_side(context, number) for number in (0, 1))
        measurements, unavailable = [], {}
        for number, figure in enumerate(_FIGURES, 1):
            found = context.journal.get(self.name, figure.name)
            if not isinstance(found, list):
                found = _look_up(figure, original, pruned)
                if isinstance(found, list):  # a reason is not kept: the next run may find a value
                    context.journal.put(self.name, figure.name, found)
            context.tell(self.name, number, len(_FIGURES))
            if isinstance(found, str):
                unavailable[figure.name] = found
                continue
            values = [np.array([[float(value)]]) for value in found]
            measurements.append(Measurement(figure.metric, ("model",), values[0], values[1]))
        return SuiteResult(self.name, tuple(measurements), (), unavailable)


@dataclass(frozen=True)
class _Figure:
    """A figure, and where both sides' values come from (a `KPruneError` says why not)."""

    name: str
    title: str
    unit: str
    better: Literal["higher", "lower"]
    values: Callable[[Side, Side], tuple[int, int]]

    @property
    def metric(self) -> Metric:
        return Metric(self.name, self.title, self.unit, self.better, _MARGIN, "exact", "ratio")


def cache_tokens(metrics: str) -> int | None:
    """Tokens that the KV cache has room for, of the text of vLLM's `/metrics`.

    >>> cache_tokens('vllm:cache_config_info{block_size="16",num_gpu_blocks="100"} 1.0')
    1600
    """
    rooms = []
    for match in _CACHE_CONFIG.finditer(metrics):
        labels = dict(_LABEL.findall(match[1]))
        blocks, size = labels.get("num_gpu_blocks", ""), labels.get("block_size", "")
        if not (blocks.isdecimal() and size.isdecimal()):
            return None
        rooms.append(int(blocks) * int(size))
    return sum(rooms) if rooms else None  # one line for each engine


def _look_up(figure: _Figure, original: Side, pruned: Side) -> list[int] | str:
    """Both values, or the reason why there are none."""
    try:
        return [*figure.values(original, pruned)]
    except (KPruneError, OSError) as error:
        return str(error)


def _side(context: Context, number: int) -> Side:
    client = context.clients[number]
    kprune, metrics = (context.wait(client.get(path)) for path in ("/kprune", "/metrics"))
    try:
        folder: Path | FolderUnknown = model_folder(context, number)
    except FolderUnknown as error:
        folder = error
    return Side(client.endpoint, folder, kprune, metrics)


def _loaded(original: Side, pruned: Side) -> tuple[int, int]:
    return _loaded_bytes(_folder(original)), _loaded_bytes(_folder(pruned))


def _on_disk(original: Side, pruned: Side) -> tuple[int, int]:
    return _disk_bytes(_folder(original)), _disk_bytes(_folder(pruned))


def _vocabulary(original: Side, pruned: Side) -> tuple[int, int]:
    status = pruned.kprune if isinstance(pruned.kprune, dict) else {}
    known = status.get("vocabulary_bytes")
    if not isinstance(known, dict):
        raise KPruneError("the pruned endpoint's /kprune tells no sizes of the vocabulary")
    before, after = known.get("original"), known.get("kept")
    if not isinstance(before, int) or not isinstance(after, int) or min(before, after) <= 0:
        raise KPruneError("the pruned endpoint's /kprune tells sizes that are no numbers")
    return before, after


def _processes(original: Side, pruned: Side) -> tuple[int, int]:
    return _process_bytes(original), _process_bytes(pruned)


def _cache(original: Side, pruned: Side) -> tuple[int, int]:
    return _cache_room(original), _cache_room(pruned)


_FIGURES = (
    _Figure("weights_loaded", "weights in memory", "bytes", "lower", _loaded),
    _Figure("weights_disk", "weight files needed", "bytes", "lower", _on_disk),
    _Figure("vocabulary", "embedding and LM head", "bytes", "lower", _vocabulary),
    _Figure("processes", "memory of the server's processes", "bytes", "lower", _processes),
    _Figure("kv_cache", "room of the KV cache", "tokens", "higher", _cache),
)


def _folder(side: Side) -> Path:
    if isinstance(side.folder, FolderUnknown):
        raise side.folder
    if not side.folder.is_dir():
        raise KPruneError(f"--{side.name}-folder: there is no folder {side.folder.name}")
    return side.folder


def _loaded_bytes(folder: Path) -> int:
    if not is_overlay(folder):
        return sum(info.bytes for info in open_base(str(folder)).tensors.values())
    manifest = load_manifest(folder)
    return model_sizes(open_base(str(manifest.check_base())), manifest)[1].weight_bytes


def _disk_bytes(folder: Path) -> int:
    own = sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
    if not is_overlay(folder):
        base = open_base(str(folder))
        return sum((folder / name).stat().st_size for name in base.shards)
    base = open_base(str(load_manifest(folder).check_base()))
    return own + sum((base.folder / name).stat().st_size for name in base.shards)


def _process_bytes(side: Side) -> int:
    if not side.endpoint.is_local:
        raise KPruneError(f"the {side.name} server is not on this machine")
    listener = _listener(side)
    memory = tree_memory(listener) if listener else None
    if not memory or not memory.bytes:
        raise KPruneError(f"the processes of the {side.name} server are somebody else's")
    return memory.bytes


def _listener(side: Side) -> int:
    """The process that listens at the endpoint's port; 0 if that is hidden from us."""
    try:
        import psutil
    except ModuleNotFoundError:
        raise KPruneError("psutil is missing; pip install 'vllm-kprune[compare]'") from None
    parts = urlsplit(side.endpoint.url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        for connection in psutil.net_connections("tcp"):
            address = connection.laddr
            if connection.status == psutil.CONN_LISTEN and address and address.port == port:
                return connection.pid or 0
    except psutil.Error as error:
        raise KPruneError(
            f"this system does not tell who listens at port {port}: {error}"
        ) from None
    raise KPruneError(f"no process listens at port {port}")


def _cache_room(side: Side) -> int:
    if not isinstance(side.metrics, str):
        raise KPruneError(f"the {side.name} endpoint has no /metrics")
    tokens = cache_tokens(side.metrics)
    if tokens is None:
        raise KPruneError(f"the {side.name} endpoint's /metrics do not tell its KV cache")
    return tokens
