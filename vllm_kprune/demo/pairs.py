"""A model and its overlay, served side by side on one machine with the same settings.

What `kprune demo` shows and the paper's experiment measures. The settings are vLLM's own with a
small KV cache: compiled unless told otherwise, as models are served in earnest.
"""

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

__all__ = ["NAMES", "ModelPair", "Servers", "open_pair", "serve_pair"]

Servers = tuple[VllmServer, VllmServer]

NAMES = ("original", "pruned")  # what the two answer under, in this order everywhere
_SETTINGS = ("--plugin", "kprune")
# What vLLM 0.32 compiles ahead of time does not load again on a CPU: every start then compiles for
# 40 s. Without it, what torch itself saves is found again.
_ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_USE_AOT_COMPILE": "0",
}


@dataclass(frozen=True)
class ModelPair:
    """A base model and its overlay."""

    base: BaseModel
    overlay: Path
    manifest: Manifest

    @property
    def name(self) -> str:
        """The model as a reader knows it: its id on the hub, or the name of its folder."""
        reference = self.base.reference
        return self.base.folder.name if Path(reference).is_dir() else reference


def open_pair(model: str, profile: Profile, progress: Progress = silent) -> ModelPair:
    """A base model, by folder or hub id, and its overlay, made in the cache when missing."""
    base = open_base(model)
    overlay = cached_overlay(str(base.folder), profile, progress=progress)
    return ModelPair(base, overlay.folder, overlay.manifest)


@contextmanager
def serve_pair(
    pair: ModelPair, arguments: Sequence[str], *, eager: bool = False
) -> Iterator[Servers]:
    """Both models, served with these arguments of `vllm serve`; the original's server is first.

    They start side by side and are stopped whatever happens.
    """
    settings = [*_SETTINGS, *arguments, *(["--enforce-eager"] if eager else [])]
    original, pruned = (
        VllmServer(folder, [*settings, "--served-model-name", name], environment=_ENVIRONMENT)
        for folder, name in zip((pair.base.folder, pair.overlay), NAMES, strict=True)
    )
    servers = (original, pruned)
    with ExitStack() as stack:
        for server in servers:
            stack.push(server.__exit__)
        for server in servers:
            stack.callback(server.ask_to_stop)  # all of them before the first is waited for
            server.start()
        try:
            wait_all_ready(servers)
        except ServerFailed as error:
            raise KPruneError(error.summary) from None
        yield servers
