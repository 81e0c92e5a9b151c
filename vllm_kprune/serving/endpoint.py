"""`GET /kprune`: which vocabulary this server serves, and how it guards answers and prunes prompts.

An entry point of `vllm.endpoint_plugins`: vLLM loads it only when it is named (`--plugin kprune`,
or `VLLM_PLUGINS`). Like `/health` and `/version` it needs no API key, so it shows no local path.
"""

from argparse import Namespace
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from safetensors import safe_open

from vllm_kprune import __version__
from vllm_kprune.checkpoint.manifest import Manifest, is_overlay, load_manifest
from vllm_kprune.checkpoint.places import public_name
from vllm_kprune.prompt.budget import PruneOptions
from vllm_kprune.serving.compat import vllm_version
from vllm_kprune.serving.options import PREFIX
from vllm_kprune.serving.pruning.break_even import BreakEven, settle
from vllm_kprune.serving.pruning.cost import NEVER
from vllm_kprune.serving.pruning.endpoint import preview
from vllm_kprune.serving.pruning.hooks import pruning_of
from vllm_kprune.serving.pruning.service import PromptPruning
from vllm_kprune.serving.request_options import (
    GUARD_NAMES,
    HEAD_KEY,
    PRUNE_NAMES,
    UNFIXED_NAMES,
)
from vllm_kprune.serving.settings import settings_of
from vllm_kprune.serving.usage.endpoint import answer, usage_status, usage_view

__all__ = [
    "KPruneEndpoint",
    "guard_status",
    "head_status",
    "pruner_status",
    "register",
    "server_status",
]


def register() -> "KPruneEndpoint":
    """Entry point `vllm.endpoint_plugins`: the factory of the plugin object."""
    return KPruneEndpoint()


class KPruneEndpoint:
    """vLLM's endpoint plugin protocol; most of the answer is computed once, at start-up."""

    name = "kprune"
    required_tasks = None

    def attach_router(self, app: FastAPI) -> None:
        """Add the routes."""
        app.add_api_route("/kprune", _answer, methods=["GET"], summary="What kprune does here")
        app.add_api_route(
            "/kprune/usage", answer, methods=["GET"], summary="How often each token was answered"
        )
        app.add_api_route(
            "/kprune/prune", preview, methods=["POST"], summary="What would be pruned of a prompt"
        )

    async def init_state(self, engine_client: Any, state: Any, args: Namespace) -> None:
        """Read the served model's manifest, if it has one, and measure the pruner's break-even."""
        vllm_config = engine_client.vllm_config if engine_client else None
        config = vllm_config.model_config if vllm_config else None
        model = config.model if config else args.model
        weights = getattr(config, "model_weights", "")
        status = server_status(model, Path(weights) if weights else None)
        # Set in any case, as below: the route is there on every server.
        state.kprune_usage = usage_view(vllm_config)
        state.kprune = {
            **status,
            "head": head_status(vllm_config),
            "guard": guard_status(vllm_config),
            "usage": usage_status(state.kprune_usage),
        }
        state.kprune_pruning = pruning = (
            pruning_of(engine_client.renderer) if engine_client else None
        )
        # Set in any case: `_answer` reads it on every server.
        state.kprune_break_even = None
        if pruning and pruning.settings and pruning.settings.min_tokens is None:
            state.kprune_break_even = await settle(engine_client, pruning)


async def _answer(request: Request) -> dict[str, Any]:
    state = request.app.state
    # At each request, unlike the rest: the cache grows while the server runs.
    pruner = pruner_status(state.kprune_pruning, state.kprune_break_even)
    return {**state.kprune, "input_pruner": pruner}


def server_status(model: str, base: Path | None = None) -> dict[str, Any]:
    """What `GET /kprune` answers for `model`, served with its weights from `base`."""
    versions = {"kprune": __version__, "vllm": vllm_version()}
    if not is_overlay(model):
        return {"active": False, "versions": versions}
    manifest = load_manifest(Path(model))
    return {
        "active": True,
        # Without `keep`: names of products, say, are not for everybody who can ask.
        "profile": {k: v for k, v in asdict(manifest.profile).items() if k != "keep"},
        "tokens": {"original": manifest.original_tokens, "kept": len(manifest.kept_ids)},
        "rows": {"original": manifest.original_rows, "kept": len(manifest.kept_rows)},
        "vocabulary_bytes": _vocabulary_bytes(manifest, base or Path(manifest.base.path)),
        "fingerprint": manifest.fingerprint,
        "base": {
            "model": public_name(manifest.base.reference, Path(manifest.base.path)),
            "revision": manifest.base.revision,
        },
        "built_with": manifest.kprune_version,
        "versions": versions,
    }


def head_status(vllm_config: Any) -> dict[str, Any]:
    """Which rows of the LM head are computed; `active` is false where it is not pruned.

    `rows` of a profile are those that a batch with its requests needs at least; they are more than
    its `tokens` if it is not a part of the larger ones.
    """
    rows = settings_of(vllm_config).head_rows if vllm_config else None
    if rows is None:
        return {"active": False}
    original = vllm_config.model_config.get_vocab_size()
    rows = rows.within(original)
    profiles = zip(rows.profiles, rows.tokens, rows.ends, strict=True)
    return {
        "active": True,
        "profile": rows.profiles[0],
        "profiles": [
            {"name": name, "tokens": tokens, "rows": end} for name, tokens, end in profiles
        ],
        "rows": {"original": original, "kept": len(rows.ids)},
        "request_options": [HEAD_KEY],
    }


def guard_status(vllm_config: Any) -> dict[str, Any]:
    """The guard of requests that do not ask for one, and the options with which they may ask.

    `available` is false where this server cannot guard, or has no engine. `reasoning` is true where
    the guard can tell a model's reasoning from its answer. The options are listed by name only: an
    error about a wrong value lists the values.
    """
    settings = settings_of(vllm_config).guard if vllm_config else None
    if settings is None or not settings.attached:
        return {"available": False}
    options = [] if settings.fixed else [PREFIX + name for name in GUARD_NAMES]
    return {
        "available": True,
        "default": asdict(settings.default) if settings.default else None,
        "think_languages": settings.think,
        "reasoning": bool(settings.markers and settings.markers.reasoning),
        "fixed": settings.fixed,
        "request_options": options,
    }


def pruner_status(
    pruning: PromptPruning | None, measured: BreakEven | None = None
) -> dict[str, Any]:
    """The input pruner: its ranker, its cache, and what a request gets that asks for nothing.

    With `min_tokens` None, nothing is pruned unless the request itself gives `min_tokens`.
    """
    if pruning is None or pruning.settings is None or pruning.ranker is None:
        return {"available": False}
    default, cache = pruning.settings.default, pruning.cache
    options = UNFIXED_NAMES if pruning.settings.fixed else PRUNE_NAMES
    return {
        "available": True,
        "ranker": pruning.ranker.name,
        "scorer": default.options.scorer or pruning.ranker.pruner.default_scorer,
        "default": {**asdict(default), "options": _shown_options(default.options)},
        "min_tokens": None if pruning.min_tokens >= NEVER else pruning.min_tokens,
        "break_even": measured.as_dict() if measured else None,
        # In steps: exact bytes would tell how long a neighbour's text is.
        "cache": {"max_bytes": cache.max_bytes, "filled": _in_steps(cache.bytes, cache.max_bytes)},
        "fixed": pruning.settings.fixed,
        "request_options": [PREFIX + name for name in options],
    }


def _shown_options(options: PruneOptions) -> dict[str, Any]:
    """The options without those that the answer shows elsewhere."""
    return {k: v for k, v in asdict(options).items() if k not in ("min_tokens", "scorer")}


def _in_steps(part: int, whole: int) -> float:
    """A share, in steps of a sixteenth.

    >>> _in_steps(5, 16 * 4)
    0.0625
    """
    return part * 16 // whole / 16 if whole else 0.0


def _vocabulary_bytes(manifest: Manifest, base: Path) -> dict[str, int] | None:
    """Bytes of the vocabulary tensors as stored, before and after; None when base is absent."""
    if not base.is_dir():
        return None  # --load-format dummy needs no base
    before = sum(_stored_bytes(manifest, base))
    return {
        "original": before,
        # Bytes of a row first, over all vocabulary tensors together, then times the kept rows.
        "kept": before // manifest.original_rows * len(manifest.kept_rows),
    }


def _stored_bytes(manifest: Manifest, base: Path) -> Iterator[int]:
    wanted = set(manifest.vocabulary_tensors)
    for name in manifest.weight_files:
        with safe_open(base / name, framework="pt", device="cpu") as file:
            for key in wanted & set(file.keys()):
                yield file.get_tensor(key).nbytes  # memory-mapped: nothing is read
