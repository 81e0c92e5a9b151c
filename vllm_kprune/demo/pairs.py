"""A model and its overlay, served side by side on one machine with the same settings.

`kprune demo` and the paper's experiment use such a pair. The settings are vLLM's defaults with a
small KV cache. Models are compiled unless `eager` is set, as they are in production.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from vllm_kprune.checkpoint.base import BaseModel, open_base
from vllm_kprune.checkpoint.cached import cached_overlay
from vllm_kprune.checkpoint.manifest import Manifest
from vllm_kprune.demo.servers import ServerFailed, VllmServer, wait_all_ready
from vllm_kprune.errors import KPruneError
from vllm_kprune.profile import Profile
from vllm_kprune.progress import Progress, silent

__all__ = ["NAMES", "ModelPair", "Servers", "make_pair", "serve_pair"]

Servers = tuple[VllmServer, VllmServer]

NAMES = ("original", "pruned")  # the names under which the two models are served, in this order
_SETTINGS = ("--plugin", "kprune")
# On a CPU, vLLM 0.32 does not load again what it compiled ahead of time, so every start would
# compile for 40 s. Without that, torch's own cache is used.
_ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_USE_AOT_COMPILE": "0",
}
# Which cores the threads of vLLM's CPU build run on.
_BIND = "VLLM_CPU_OMP_THREADS_BIND"


@dataclass(frozen=True)
class ModelPair:
    """A base model and its overlay."""

    base: BaseModel
    overlay: Path
    manifest: Manifest

    @property
    def name(self) -> str:
        """The name that a reader knows: the model's id on the hub, or the name of its folder."""
        reference = self.base.reference
        return self.base.folder.name if Path(reference).is_dir() else reference


def make_pair(model: str, profile: Profile, progress: Progress = silent) -> ModelPair:
    """A base model, by folder or hub id, and its overlay, built in the cache if missing."""
    base = open_base(model)
    overlay = cached_overlay(str(base.folder), profile, progress=progress)
    return ModelPair(base, overlay.folder, overlay.manifest)


@contextmanager
def serve_pair(
    pair: ModelPair, arguments: Sequence[str], *, eager: bool = False
) -> Iterator[Servers]:
    """Both models, served with these arguments of `vllm serve`; the original's server comes first.

    They start at the same time and are always stopped at the end.
    """
    settings = [*_SETTINGS, *arguments, *(["--enforce-eager"] if eager else [])]
    original, pruned = (
        VllmServer(
            folder,
            [*settings, "--served-model-name", name],
            environment={**_ENVIRONMENT, **environment},
        )
        for folder, name, environment in zip(
            (pair.base.folder, pair.overlay), NAMES, _halves_of_the_machine(), strict=True
        )
    )
    servers = (original, pruned)
    with ExitStack() as stack:
        for server in servers:
            # Last in, first out: these waits come after all the signals that are registered below.
            stack.push(server.__exit__)
        for server in servers:
            stack.callback(server.ask_to_stop)  # signal all servers before waiting for the first
            server.start()
        try:
            wait_all_ready(servers)
        except ServerFailed as error:
            raise KPruneError(error.summary) from None
        yield servers


def _halves_of_the_machine() -> tuple[dict[str, str], dict[str, str]]:
    """Environments that give each of two servers half of the CPU's cores.

    By itself vLLM binds both servers to the same cores, where they took twice as long. On a GPU it
    does not read the variable.
    """
    cores = _cores()
    if _BIND in os.environ or len(cores) < 2:
        return {}, {}
    half = len(cores) // 2
    first, second = cores[:half], cores[half : 2 * half]
    return {_BIND: ",".join(map(str, first))}, {_BIND: ",".join(map(str, second))}


def _cores() -> list[int]:
    """One CPU of each core that this process may use; all CPUs if there is one core only."""
    cpus = sorted(os.sched_getaffinity(0))
    cores: dict[str, int] = {}
    for cpu in cpus:
        siblings = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        name = siblings.read_text() if siblings.is_file() else str(cpu)
        cores.setdefault(name, cpu)
    return list(cores.values()) if len(cores) > 1 else cpus
