"""Which folder a server's own name for its model stands for."""

from pathlib import Path
from typing import Any

import pytest
from support.mock_endpoint import MockClient, comparing, scoring
from support.tiny_architectures import ARCHITECTURES
from support.tiny_folders import save_model

from vllm_kprune.checkpoint.base import open_base
from vllm_kprune.checkpoint.cached import CachedOverlay, cached_overlay
from vllm_kprune.compare.suites.exactness import Exactness
from vllm_kprune.compare.suites.memory import Memory
from vllm_kprune.compare.suites.model_folders import FolderUnknown, model_folder
from vllm_kprune.profile import Profile

THAI = Profile(name="thai", languages=("th",), genres=())
SIZES = "weights_loaded", "vocabulary"


def clients(root: Any) -> tuple[MockClient, MockClient]:
    paths = {"/v1/models": {"data": [{"id": "model", "root": root}]}}
    original, pruned = (MockClient(n, scoring, paths=paths) for n in ("original", "pruned"))
    return original, pruned


@pytest.fixture
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CachedOverlay:
    """What `vllm serve MODEL --kprune-profile thai` serves: an overlay in the cache."""
    monkeypatch.setenv("KPRUNE_CACHE", str(tmp_path / "cache"))
    return cached_overlay(save_model(tmp_path / "whole"), THAI)


def serving(model: Path, **pruned: Any) -> tuple[MockClient, MockClient]:
    """Two servers of one folder, the second one with a profile."""
    paths: dict[str, Any] = {"/v1/models": {"data": [{"id": "model", "root": str(model)}]}}
    original = MockClient("original", scoring, paths={**paths, "/kprune": {"active": False}})
    return original, MockClient("pruned", scoring, paths={**paths, "/kprune": pruned})


def told(folder: Path, root: Any) -> Path:
    with comparing(folder, *clients(root)) as context:
        return model_folder(context, 1)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a model in `build/enko`."""
    here = tmp_path / "here"
    save_model(here / "build" / "enko")
    (here / "build" / "empty").mkdir()
    save_model(tmp_path / "beside")
    monkeypatch.chdir(here)
    return here


def test_a_relative_name_is_tried_in_the_current_folder(here: Path, tmp_path: Path) -> None:
    assert told(tmp_path / "run", "build/enko") == here / "build" / "enko"
    assert told(tmp_path / "absolute", str(tmp_path / "beside")) == tmp_path / "beside"
    with comparing(tmp_path / "memory", *clients("build/enko")) as context:
        names = {one.metric.name for one in Memory().run(context).measurements}
    assert {"weights_disk", "weights_loaded"} <= names


@pytest.mark.parametrize(
    "root",
    ["../beside", "build/../../beside", "build/empty", "build", "org/model", "x" * 300,
     "a/" * 40 + "b", ".", "~/model"],
)  # fmt: skip
def test_any_other_name_is_told_with_what_to_do(root: str, tmp_path: Path) -> None:
    with pytest.raises(FolderUnknown, match="start the server with an absolute path"):
        told(tmp_path / "run", root)


@pytest.mark.parametrize("root", [None, 3, "", "a\0b", "a\x1b[31m", "x" * 5000])
def test_what_is_no_name_is_as_good_as_none(root: Any, tmp_path: Path) -> None:
    with pytest.raises(FolderUnknown, match="is unknown; name it with --pruned-folder"):
        told(tmp_path / "run", root)


@pytest.mark.parametrize("root", ["whole", "org/model"])
def test_a_server_with_a_profile_serves_the_overlay_in_the_cache(
    root: str, tmp_path: Path, cached: CachedOverlay
) -> None:
    # vLLM names the folder of the command line, which is that of the original.
    model = tmp_path / "whole" if root == "whole" else Path(root)
    clients = serving(model, active=True, fingerprint=cached.manifest.fingerprint)
    with comparing(tmp_path / "run", *clients) as context:
        assert model_folder(context, 1) == cached.folder
    # Its server is gone, but the run still knows it.
    with comparing(tmp_path / "run", *serving(model)) as context:
        context.clients[1].paths.pop("/kprune")
        assert model_folder(context, 1) == cached.folder


def test_the_weights_of_a_profile_are_not_those_of_the_original(
    tmp_path: Path, cached: CachedOverlay
) -> None:
    clients = serving(tmp_path / "whole", active=True, fingerprint=cached.manifest.fingerprint)
    with comparing(tmp_path / "run", *clients) as context:
        found = {one.metric.name: one for one in Memory().run(context).measurements}
    rows = found["vocabulary"].pruned.item() / found["vocabulary"].original.item()
    assert rows == len(cached.manifest.kept_rows) / cached.base.rows < 1
    saved = [found[name].original.item() - found[name].pruned.item() for name in SIZES]
    assert saved[0] == saved[1] > 0
    assert found["weights_disk"].pruned.item() > found["weights_disk"].original.item()


@pytest.mark.parametrize("folder", [None, "whole"])
def test_an_overlay_that_is_not_here_has_no_size(
    folder: str | None, tmp_path: Path, cached: CachedOverlay
) -> None:
    named = {"pruned_folder": tmp_path / folder} if folder else {}
    clients = serving(tmp_path / "whole", active=True, fingerprint="f" * 64)
    with comparing(tmp_path / "run", *clients, **named) as context:
        with pytest.raises(FolderUnknown, match=r"overlay f{12}, .* with --pruned-folder"):
            model_folder(context, 1)
        assert "overlay ffffffffffff" in Memory().run(context).unavailable["weights_loaded"]


@pytest.mark.parametrize("name", ["llama-3.1", "llama-3.2"])
def test_a_head_that_is_pruned_alone_adds_a_copy_or_leaves_rows_out(
    name: str, tmp_path: Path
) -> None:
    base = open_base(str(ARCHITECTURES[name].save(tmp_path / "whole")))
    clients = serving(tmp_path / "whole", active=False, head={"active": True, "rows": {"kept": 10}})
    with comparing(tmp_path / "run", *clients) as context:
        found = {one.metric.name: one for one in Memory().run(context).measurements}
    head = base.vocabulary_tensors[0].bytes // base.rows
    more = 10 * head if base.tied else (10 - base.rows) * head
    for size in SIZES:
        assert found[size].pruned.item() - found[size].original.item() == more


def test_the_report_says_why_a_folder_was_not_found(tmp_path: Path) -> None:
    with comparing(tmp_path / "run", *clients("build/enko2"), limit=2) as context:
        reason = Memory().run(context).unavailable["weights_disk"]
        notes = Exactness().run(context).notes
    assert "the original server calls its model 'build/enko2', which is not" in reason
    assert any("'build/enko2'" in note for note in notes)
