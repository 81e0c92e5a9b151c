"""`GET /kprune`: which vocabulary this server serves, and what it was made from.

An entry point of `vllm.endpoint_plugins`: vLLM loads it only when it is named (`--plugin kprune`,
or `VLLM_PLUGINS`). Like `/health` and `/version` it needs no API key, so it tells no local path.
"""

from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from safetensors import safe_open

from vllm_kprune import __version__
from vllm_kprune.checkpoint.manifest import BaseReference, Manifest, is_overlay, load_manifest
from vllm_kprune.serving.compat import vllm_version

__all__ = ["KPruneEndpoint", "register", "server_status"]


def register() -> "KPruneEndpoint":
    """Entry point `vllm.endpoint_plugins`: the factory of the plugin object."""
    return KPruneEndpoint()


class KPruneEndpoint:
    """vLLM's endpoint plugin protocol; the answer is computed once, at start-up."""

    name = "kprune"
    required_tasks = None

    def attach_router(self, app: FastAPI) -> None:
        """Add the route."""
        app.add_api_route("/kprune", _answer, methods=["GET"], summary="The served vocabulary")

    async def init_state(self, engine_client: Any, state: Any, args: Namespace) -> None:
        """Read the manifest of the served model, if it has one."""
        config = engine_client.vllm_config.model_config if engine_client else None
        model = config.model if config else args.model
        weights = getattr(config, "model_weights", "")
        state.kprune = server_status(model, Path(weights) if weights else None)


async def _answer(request: Request) -> dict[str, Any]:
    status: dict[str, Any] = request.app.state.kprune
    return status


def server_status(model: str, base: Path | None = None) -> dict[str, Any]:
    """What `GET /kprune` answers for `model`, served with its weights from `base`."""
    versions = {"kprune": __version__, "vllm": vllm_version()}
    if not is_overlay(model):
        return {"active": False, "versions": versions}
    manifest = load_manifest(Path(model))
    return {
        "active": True,
        "profile": manifest.profile.model_dump(mode="json"),
        "tokens": {"original": manifest.original_tokens, "kept": len(manifest.kept_ids)},
        "rows": {"original": manifest.original_rows, "kept": len(manifest.kept_rows)},
        "vocabulary_bytes": _vocabulary_bytes(manifest, base or Path(manifest.base.path)),
        "fingerprint": manifest.fingerprint,
        "base": {"model": _public_name(manifest.base), "revision": manifest.base.revision},
        "built_with": manifest.kprune_version,
        "versions": versions,
    }


def _public_name(base: BaseReference) -> str:
    """The base as a hub id; of a local folder only its last part."""
    local = base.reference == base.path or Path(base.reference).expanduser().is_absolute()
    return Path(base.reference).name if local or "\\" in base.reference else base.reference


def _vocabulary_bytes(manifest: Manifest, base: Path) -> dict[str, int] | None:
    """Bytes of the vocabulary tensors as stored, before and after; None when base is absent."""
    if not base.is_dir():
        return None  # --load-format dummy needs no base
    before = sum(_stored_bytes(manifest, base))
    return {
        "original": before,
        "kept": before // manifest.original_rows * len(manifest.kept_rows),
    }


def _stored_bytes(manifest: Manifest, base: Path) -> Iterator[int]:
    wanted = set(manifest.vocabulary_tensors)
    for name in manifest.base.files:
        if not name.endswith(".safetensors"):
            continue
        with safe_open(base / name, framework="pt", device="cpu") as file:
            for key in wanted & set(file.keys()):
                yield file.get_tensor(key).nbytes  # memory-mapped: nothing is read
