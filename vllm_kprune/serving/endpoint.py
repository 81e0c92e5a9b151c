"""`GET /kprune`: which vocabulary this server serves, what it was made from, and how it guards.

An entry point of `vllm.endpoint_plugins`: vLLM loads it only when it is named (`--plugin kprune`,
or `VLLM_PLUGINS`). Like `/health` and `/version` it needs no API key, so it tells no local path.
"""

from argparse import Namespace
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from safetensors import safe_open

from vllm_kprune import __version__
from vllm_kprune.checkpoint.manifest import BaseReference, Manifest, is_overlay, load_manifest
from vllm_kprune.guard.policy import OPTIONS
from vllm_kprune.serving.compat import vllm_version
from vllm_kprune.serving.guard_attach import is_attached
from vllm_kprune.serving.guard_settings import guard_settings
from vllm_kprune.serving.options import PREFIX

__all__ = ["KPruneEndpoint", "guard_status", "register", "server_status"]


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
        vllm_config = engine_client.vllm_config if engine_client else None
        config = vllm_config.model_config if vllm_config else None
        model = config.model if config else args.model
        weights = getattr(config, "model_weights", "")
        status = server_status(model, Path(weights) if weights else None)
        state.kprune = {**status, "guard": guard_status(vllm_config)}


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


def guard_status(vllm_config: Any) -> dict[str, Any]:
    """The guard of requests that ask for none, and whether they may ask.

    `available` is false where this server cannot guard, or serves no engine. What a request may
    give is listed by name, without the values: an error names these.
    """
    if vllm_config is None or not is_attached(vllm_config):
        return {"available": False}
    settings = guard_settings(vllm_config.additional_config)
    options = [] if settings.fixed else [PREFIX + name for name in OPTIONS]
    return {
        "available": True,
        "default": asdict(settings.default) if settings.default else None,
        "fixed": settings.fixed,
        "request_options": options,
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
