"""Pruned models to heal: sparsified, with a small vocabulary, and both."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.heal_cases import Healed, heal_options
from support.small_runs import cached_in, one_thread, own_cache, saved, shared_cache, text, unsynced
from support.sparsify_cases import small_options

from vllm_kprune.checkpoint.export import export_overlay
from vllm_kprune.checkpoint.overlay import build_overlay
from vllm_kprune.heal.run import heal_model
from vllm_kprune.profile import Profile
from vllm_kprune.sparsify.run import sparsify_model

__all__ = ["one_thread", "own_cache", "saved", "shared_cache", "text", "unsynced"]


@pytest.fixture(scope="session")
def sparse(
    saved: Callable[[str], Path],
    text: Path,
    shared_cache: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[str], Path]:
    """A function that gives a tiny architecture, half of whose weights are zero."""
    root = tmp_path_factory.mktemp("sparse")

    def make(name: str) -> Path:
        if not (root / name).is_dir():
            with cached_in(shared_cache):
                sparsify_model(saved(name), root / name, small_options("magnitude", text))
        return root / name

    return make


@pytest.fixture(scope="session")
def export(
    saved: Callable[[str], Path],
    text: Path,
    shared_cache: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A Qwen3 with a tied head whose vocabulary was pruned."""
    root = tmp_path_factory.mktemp("export")
    profile = Profile(name="thai", languages=("th",), genres=())
    build_overlay(saved("qwen3-tied"), profile, root / "overlay", corpora=[text])
    with cached_in(shared_cache):
        export_overlay(root / "overlay", root / "export")
    return root / "export"


@pytest.fixture(scope="session")
def sparse_export(export: Path, text: Path, shared_cache: Path) -> Path:
    """The same, sparsified too."""
    with cached_in(shared_cache):
        sparsify_model(export, export.parent / "sparse", small_options("magnitude", text))
    return export.parent / "sparse"


@pytest.fixture(autouse=True)
def undrawn(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A picture takes longer to draw than a tiny model takes to train, so one test draws it."""
    if "drawn" not in request.fixturenames:
        monkeypatch.setattr(
            "vllm_kprune.heal.run.draw_curve", lambda notes, path: path.write_text("<svg/>")
        )


@pytest.fixture
def drawn() -> None:
    """The picture is drawn in this test."""


@pytest.fixture
def healed(text: Path, tmp_path: Path) -> Healed:
    """A function that heals a model with a few steps; gives the new folder and its record."""

    def run(model: Path, *, tell: Any = print, **options: Any) -> tuple[Path, dict[str, Any]]:
        output = tmp_path / f"healed-{len(list(tmp_path.iterdir()))}"
        return output, heal_model(model, output, heal_options(text, **options), tell=tell)

    return run
