"""Memory of both sides: weights on disk and loaded, vocabulary, processes, KV cache.

Each metric has its own source, or else a reason why it is not measured. Weights and vocabulary come
from the headers of the files in the model folders (see `model_folders`). `/kprune` tells which rows
of a head that is pruned alone are loaded, and the size of the vocabulary if a folder is unknown.
The capacity of the KV cache comes from `/metrics`, and process memory from the operating system if
the server is on this machine. Nothing is sampled, so nothing has an interval. An overlay needs the
weight files of its base, which count for it too.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from vllm_kprune.checkpoint.base import BaseModel, open_base
from vllm_kprune.checkpoint.manifest import Manifest, is_overlay, load_manifest
from vllm_kprune.checkpoint.sizes import weight_sizes
from vllm_kprune.compare.endpoint.messages import Endpoint, same_endpoint
from vllm_kprune.compare.measurements import Measurement, Metric, SuiteResult
from vllm_kprune.compare.options import CommonOptions
from vllm_kprune.compare.run import Amount, Context, Suite
from vllm_kprune.compare.suites.model_folders import FolderUnknown, model_folder
from vllm_kprune.compare.suites.server_memory import listener, tree_memory
from vllm_kprune.errors import KPruneError

__all__ = ["Memory", "Side", "cache_tokens"]

_CACHE_CONFIG = re.compile(r"^vllm:cache_config_info\{([^\n]{0,20000})\}", re.M)
_LABEL = re.compile(r'(\w{1,100})="([^"\\]{0,1000})"')
_MOST_ROWS = 1 << 24
_AS_STORED = "Weights are counted in the type of their files, whatever --dtype makes of it."
# An overlay adds a few MB of its own files to those of its base.
_MARGIN = 0.02


class _Stored(NamedTuple):
    """The bytes of what a server loads, in the type that its files have."""

    weights: int
    vocabulary: int


@dataclass(frozen=True)
class Side:
    """The sources of one side: its endpoint, its folder (or why it is unknown), and two paths.

    `kprune` and `metrics` are the contents of `/kprune` and `/metrics`; None if there are none.
    """

    endpoint: Endpoint
    folder: Path | FolderUnknown
    kprune: Any
    metrics: Any

    @property
    def name(self) -> str:
        """`original` or `pruned`."""
        return self.endpoint.name

    @cached_property
    def opened(self) -> tuple[BaseModel, Manifest | None]:
        """The model whose weights are loaded, and the manifest of an overlay of it.

        Opened once for all metrics, as a tokenizer is read for it. Raises `KPruneError` if the
        folder is unknown.
        """
        folder = _folder(self)
        if not is_overlay(folder):
            return open_base(str(folder)), None
        manifest = load_manifest(folder)
        return open_base(str(manifest.check_base())), manifest

    @cached_property
    def stored(self) -> "_Stored":
        """Bytes of weights and vocabulary that the server loads, as the headers of files say."""
        base, manifest = self.opened
        if manifest:
            # The overlay has no weights: those of its base are loaded in part.
            sizes = weight_sizes(base, len(manifest.kept_rows))
            return _Stored(int(sizes.bytes.last), int(sizes.vocabulary_bytes.last))
        sizes = weight_sizes(base, _head_rows(self.kprune))
        added = int(sizes.head_bytes.last - sizes.bytes.original)  # less than 0 for an untied head
        return _Stored(
            int(sizes.bytes.original) + added, int(sizes.vocabulary_bytes.original) + added
        )


@dataclass(frozen=True)
class Memory(Suite):
    """The suite `memory`."""

    name = "memory"
    metrics = ("weights_loaded", "weights_disk", "vocabulary", "processes", "kv_cache")
    help = "weights on disk and loaded, vocabulary, process memory, capacity of the KV cache"

    def amount(self, common: CommonOptions) -> Amount:
        """It asks the servers for their sizes only."""
        return Amount(1, 0)

    def run(self, context: Context) -> SuiteResult:
        """Look up every metric on both sides."""
        original, pruned = (_side(context, number) for number in (0, 1))
        measurements, unavailable = [], {}
        for number, row in enumerate(_METRICS, 1):
            sizes = _sizes(context, row, original, pruned)
            context.progress(self.name, number, len(_METRICS))
            if isinstance(sizes, str):
                unavailable[row.name] = sizes
                continue
            sides = [np.array([[float(size)]]) for size in sizes]
            measurements.append(Measurement(row.metric, ("model",), sides[0], sides[1]))
        return SuiteResult(self.name, tuple(measurements), (), unavailable, (_AS_STORED,))


@dataclass(frozen=True)
class _MemoryMetric:
    """A metric, and how the sizes of both sides are found (a `KPruneError` says why not)."""

    name: str
    title: str
    unit: str
    better: Literal["higher", "lower"]
    sizes: Callable[[Side, Side], tuple[int, int]]

    @property
    def metric(self) -> Metric:
        return Metric(self.name, self.title, self.unit, self.better, _MARGIN, "exact", "ratio")


def cache_tokens(metrics: str) -> int | None:
    """The capacity of the KV cache in tokens, from the text of vLLM's `/metrics`.

    >>> cache_tokens('vllm:cache_config_info{block_size="16",num_gpu_blocks="100"} 1.0')
    1600
    """
    rooms = []
    for match in _CACHE_CONFIG.finditer(metrics):
        labels = dict(_LABEL.findall(match[1]))
        blocks, size = labels.get("num_gpu_blocks", ""), labels.get("block_size", "")
        # The number may be the text "None".
        if not (blocks.isdecimal() and size.isdecimal()):
            return None
        rooms.append(int(blocks) * int(size))
    return sum(rooms) if rooms else None  # there is one line for each engine


def _sizes(context: Context, row: _MemoryMetric, original: Side, pruned: Side) -> list[int] | str:
    """The kept sizes, or those that are found now, or why there are none."""
    journal, key = context.journal, context.pair_key + row.name
    kept = journal.get(Memory.name, key)
    if isinstance(kept, list):
        return kept
    # A reason is kept for whoever judges without servers; another run may find sizes.
    why = journal.get(Memory.name, f"{key} missing")
    if context.recorded:
        return str(why or "not looked up in this run")
    found = _look_up(row, original, pruned)
    if isinstance(found, list):
        journal.put(Memory.name, key, found)
    elif found != why:
        journal.put(Memory.name, f"{key} missing", found)
    return found


def _look_up(row: _MemoryMetric, original: Side, pruned: Side) -> list[int] | str:
    """The sizes of both sides, or the reason why there are none."""
    try:
        return [*row.sizes(original, pruned)]
    except (KPruneError, OSError) as error:
        return str(error)


def _side(context: Context, number: int) -> Side:
    client = context.clients[number]
    metrics = context.wait(client.get("/metrics"))
    try:
        folder: Path | FolderUnknown = model_folder(context, number)
    except FolderUnknown as error:
        folder = error
    return Side(client.endpoint, folder, context.get(number, "/kprune"), metrics)


def _loaded(original: Side, pruned: Side) -> tuple[int, int]:
    return original.stored.weights, pruned.stored.weights


def _on_disk(original: Side, pruned: Side) -> tuple[int, int]:
    return _disk_bytes(original), _disk_bytes(pruned)


def _vocabulary(original: Side, pruned: Side) -> tuple[int, int]:
    try:
        return original.stored.vocabulary, pruned.stored.vocabulary
    except FolderUnknown:
        return _told_vocabulary(pruned.kprune)  # it knows both sizes


def _told_vocabulary(status: Any) -> tuple[int, int]:
    known = status.get("vocabulary_bytes") if isinstance(status, dict) else None
    if not isinstance(known, dict):
        raise KPruneError("/kprune of the pruned endpoint does not report vocabulary sizes")
    before, after = known.get("original"), known.get("kept")
    if not isinstance(before, int) or not isinstance(after, int) or min(before, after) <= 0:
        raise KPruneError("/kprune of the pruned endpoint reports sizes that are not numbers")
    return before, after


def _processes(original: Side, pruned: Side) -> tuple[int, int]:
    _check_two_servers(original, pruned)
    return _process_bytes(original), _process_bytes(pruned)


def _check_two_servers(original: Side, pruned: Side) -> None:
    """Refuse what is one server under two names: it has one size, which would seem equal."""
    alike = same_endpoint(replace(original.endpoint, model=""), replace(pruned.endpoint, model=""))
    both_here = original.endpoint.is_local and pruned.endpoint.is_local
    if not alike and both_here:
        try:
            listeners = [listener(side.endpoint.url) for side in (original, pruned)]
        except KPruneError:
            return  # whoever needs the processes says why there are none
        alike = listeners[0] == listeners[1] != 0
    if alike:
        raise KPruneError("one process serves both sides, so it has no size for each")


def _cache(original: Side, pruned: Side) -> tuple[int, int]:
    _check_two_servers(original, pruned)
    return _cache_room(original), _cache_room(pruned)


_METRICS = (
    _MemoryMetric("weights_loaded", "weights in memory", "bytes", "lower", _loaded),
    _MemoryMetric("weights_disk", "weight files needed", "bytes", "lower", _on_disk),
    _MemoryMetric("vocabulary", "embedding and LM head", "bytes", "lower", _vocabulary),
    _MemoryMetric("processes", "memory of the server's processes", "bytes", "lower", _processes),
    _MemoryMetric("kv_cache", "capacity of the KV cache", "tokens", "higher", _cache),
)


def _folder(side: Side) -> Path:
    if isinstance(side.folder, FolderUnknown):
        raise side.folder
    if not side.folder.is_dir():
        raise KPruneError(f"--{side.name}-folder: there is no folder {side.folder.name}")
    return side.folder


def _head_rows(status: Any) -> int | None:
    """The rows of a head that is pruned alone, from `/kprune`; None where it is whole."""
    head = status.get("head") if isinstance(status, dict) else None
    rows = head.get("rows") if isinstance(head, dict) else None
    kept = rows.get("kept") if isinstance(rows, dict) else None
    return kept if isinstance(kept, int) and 0 < kept <= _MOST_ROWS else None


def _disk_bytes(side: Side) -> int:
    base, manifest = side.opened
    needed = sum((base.folder / name).stat().st_size for name in base.shards)
    if manifest:
        # All files of an overlay count, since it is made of them; of a base only its weights do.
        needed += sum(path.stat().st_size for path in _folder(side).iterdir() if path.is_file())
    return needed


def _process_bytes(side: Side) -> int:
    if not side.endpoint.is_local:
        raise KPruneError(f"the {side.name} server is not on this machine")
    # The API server listens; vLLM's engine and workers are its children.
    server = listener(side.endpoint.url)
    memory = tree_memory(server) if server else None
    if not memory or not memory.bytes:
        raise KPruneError(f"the processes of the {side.name} server belong to another user")
    return memory.bytes


def _cache_room(side: Side) -> int:
    if not isinstance(side.metrics, str):
        raise KPruneError(f"the {side.name} endpoint has no /metrics")
    tokens = cache_tokens(side.metrics)
    if tokens is None:
        raise KPruneError(f"/metrics of the {side.name} endpoint does not report its KV cache")
    return tokens
