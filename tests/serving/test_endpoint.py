"""`GET /kprune`: what it tells, and that it tells no local path."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.tiny_models import KEPT, ROWS, UNTIED, OverlayMaker

from vllm_kprune import __version__

pytestmark = pytest.mark.usefixtures("vllm_ready")


async def _get(path: str, model: Path | None) -> Any:
    from fastapi import FastAPI
    from httpx import ASGITransport, AsyncClient

    from vllm_kprune.serving.endpoint import register

    app, plugin = FastAPI(), register()
    plugin.attach_router(app)
    await plugin.init_state(None, app.state, SimpleNamespace(model=str(model)))
    async with AsyncClient(transport=ASGITransport(app), base_url="http://test") as client:
        return (await client.get(path)).json()


def get(model: Path | None) -> Any:
    import asyncio

    return asyncio.run(_get("/kprune", model))


def test_an_overlay_is_described(untied_model: Path, make_overlay: OverlayMaker) -> None:
    status = get(make_overlay(untied_model, UNTIED))
    stored = 2 * 64 * 4  # two tensors, hidden size, float32
    assert status["active"] is True
    assert status["profile"]["name"] == "third"
    assert status["tokens"] == {"original": ROWS, "kept": len(KEPT)}
    assert status["rows"] == {"original": ROWS, "kept": len(KEPT)}
    assert status["vocabulary_bytes"] == {"original": stored * ROWS, "kept": stored * len(KEPT)}
    assert status["versions"]["kprune"] == __version__
    assert len(status["fingerprint"]) == 64


def test_no_local_path_is_told(untied_model: Path, make_overlay: OverlayMaker) -> None:
    status = get(make_overlay(untied_model, UNTIED))
    assert status["base"] == {"model": untied_model.name, "revision": None}
    assert str(untied_model.parent) not in json.dumps(status)


def test_a_model_that_is_not_pruned_is_not_active(tied_model: Path) -> None:
    status = get(tied_model)
    assert status.keys() == {"active", "guard", "head", "input_pruner", "usage", "versions"}
    assert status["head"] == {"active": False}
    assert status["usage"] == {"active": False}
    assert status["input_pruner"] == {"available": False}
    assert status["active"] is False
    assert status["guard"] == {"available": False}


def test_the_plugin_keeps_vllms_protocol() -> None:
    from vllm.plugins.endpoint_plugins.interface import EndpointPlugin

    from vllm_kprune.serving.endpoint import register

    assert isinstance(register(), EndpointPlugin)
