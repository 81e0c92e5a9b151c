"""`GET /kprune/usage`: who may read it, what it names, and in whose ids."""

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from support.tiny_folders import save_model

from vllm_kprune.checkpoint.manifest import load_manifest
from vllm_kprune.checkpoint.overlay import build_overlay
from vllm_kprune.profile import Profile
from vllm_kprune.serving.environment import COUNTER_FOLDER, NAMED
from vllm_kprune.serving.usage.counts import UsageCounts
from vllm_kprune.serving.usage.endpoint import UsageView, usage_status, usage_view
from vllm_kprune.storage.digest import sha256_file
from vllm_kprune.vocabulary.usage import read_usage

pytestmark = pytest.mark.usefixtures("vllm_ready")

ROWS = 60
THAI = Profile(name="thai", languages=("th",), code=False)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The counter folder of a server with the plugin."""
    folder = tmp_path / "counters"
    folder.mkdir()
    monkeypatch.setenv(COUNTER_FOLDER, str(folder))
    monkeypatch.setenv(NAMED, "kprune")
    return folder


def view(folder: Path, floor: int = 20) -> UsageView:
    return UsageView(folder, ROWS, floor, "a" * 64, np.arange(ROWS), ROWS)


def config(model: Path, rows: int, **options: Any) -> Any:
    """As much of a `VllmConfig` as is read."""
    given = {"kprune": options} if options else {}
    model_config = SimpleNamespace(
        model=str(model),
        tokenizer=str(model),
        tokenizer_revision=None,
        logits_processors=None,
        get_vocab_size=lambda: rows,
    )
    return SimpleNamespace(additional_config=given, model_config=model_config)


async def _get(view: UsageView | None, keys: Sequence[str], headers: dict[str, str]) -> Any:
    from fastapi import FastAPI
    from httpx import ASGITransport, AsyncClient

    from vllm_kprune.serving.endpoint import register

    app = FastAPI()
    register().attach_router(app)
    app.state.kprune_usage, app.state.args = view, SimpleNamespace(api_key=list(keys))
    async with AsyncClient(transport=ASGITransport(app), base_url="http://test") as client:
        return await client.get("/kprune/usage", headers=headers)


def get(view: UsageView | None, *keys: str, key: str | None = None) -> Any:
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    return asyncio.run(_get(view, keys, headers))


def answer(file: UsageCounts, ids: Sequence[int], times: int) -> None:
    for _ in range(times):
        file.add(ids)


def test_tokens_below_the_floor_are_counted_and_not_named(folder: Path) -> None:
    file = UsageCounts(folder, ROWS)
    answer(file, [1, 1, 5], 20)
    answer(file, [2], 19)
    answer(file, [1], 1)
    found = get(view(folder))
    assert found.status_code == 200
    assert found.headers["cache-control"] == "no-store"
    assert found.json() == {
        "format": 1,
        "tokenizer_sha256": "a" * 64,
        "vocabulary": ROWS,
        "floor": 20,
        "requests": 40,
        "tokens": 80,
        "below_floor": {"ids": 1, "tokens": 19},
        "ids": [1, 5],
        "occurrences": [41, 20],
        "in_requests": [21, 20],
    }


def test_what_it_answers_is_a_usage_file(folder: Path, tmp_path: Path) -> None:
    answer(UsageCounts(folder, ROWS), [3, 4], 25)
    saved = tmp_path / "usage.json"
    saved.write_bytes(get(view(folder)).content)
    assert read_usage(saved).ids == (3, 4)


def test_a_server_without_a_single_answer_names_nothing(folder: Path) -> None:
    found = get(view(folder)).json()
    assert (found["requests"], found["tokens"], found["ids"]) == (0, 0, [])


@pytest.mark.parametrize("key", [None, "", "wrong", "secre", "secret2"])
def test_a_server_with_a_key_tells_nothing_without_it(folder: Path, key: str | None) -> None:
    answer(UsageCounts(folder, ROWS), [1], 30)
    found = get(view(folder), "secret", "other", key=key)
    assert found.status_code == 401
    assert found.json() == {"error": {"message": "Unauthorized", "code": 401}}


@pytest.mark.parametrize("key", ["secret", "other"])
def test_each_key_of_the_server_is_accepted(folder: Path, key: str) -> None:
    assert get(view(folder), "secret", "other", key=key).status_code == 200


def test_the_key_of_the_environment_is_asked_for(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_API_KEY", "secret")
    assert get(view(folder)).status_code == 401
    assert get(view(folder), key="secret").status_code == 200


def test_a_server_that_does_not_count_says_so_to_those_with_the_key() -> None:
    assert get(None, "secret").status_code == 401
    found = get(None)
    assert found.status_code == 404
    assert "--kprune-usage" in found.json()["error"]["message"]


def test_only_a_server_that_asked_has_a_view(folder: Path, tmp_path: Path) -> None:
    model = save_model(tmp_path / "model")
    assert usage_view(None) is None
    assert usage_view(config(model, ROWS)) is None
    found = usage_view(config(model, ROWS, usage=True, usage_floor=30))
    assert found is not None
    assert usage_status(found) == {"active": True, "floor": 30}
    assert usage_status(None) == {"active": False}
    assert found.tokenizer_sha256 == sha256_file(model / "tokenizer.json")
    answer(UsageCounts(folder, ROWS), [0, ROWS - 1], 30)
    assert found.read().ids == (0, ROWS - 1)


def test_ids_of_a_pruned_vocabulary_become_the_originals(folder: Path, tmp_path: Path) -> None:
    model = save_model(tmp_path / "model")
    build_overlay(model, THAI, tmp_path / "overlay")
    manifest = load_manifest(tmp_path / "overlay")
    rows = json.loads((tmp_path / "overlay" / "config.json").read_text())["vocab_size"]
    answer(UsageCounts(folder, rows), range(rows), 20)
    found = usage_view(config(tmp_path / "overlay", rows, usage=True))
    assert found is not None
    usage = found.read()
    assert usage.ids == manifest.kept_rows
    assert usage.vocabulary == manifest.original_rows
    assert usage.tokenizer_sha256 == sha256_file(model / "tokenizer.json")
    assert usage.objection() is None
