"""Which folder a server's own name for its model stands for."""

from pathlib import Path
from typing import Any

import pytest
from support.mock_endpoint import MockClient, comparing, scoring
from support.tiny_folders import save_model

from vllm_kprune.compare.suites.exactness import Exactness
from vllm_kprune.compare.suites.memory import Memory
from vllm_kprune.compare.suites.model_folders import FolderUnknown, model_folder


def clients(root: Any) -> tuple[MockClient, MockClient]:
    paths = {"/v1/models": {"data": [{"id": "model", "root": root}]}}
    original, pruned = (MockClient(n, scoring, paths=paths) for n in ("original", "pruned"))
    return original, pruned


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


def test_the_report_says_why_a_folder_was_not_found(tmp_path: Path) -> None:
    with comparing(tmp_path / "run", *clients("build/enko2"), limit=2) as context:
        reason = Memory().run(context).unavailable["weights_disk"]
        notes = Exactness().run(context).notes
    assert "the original server calls its model 'build/enko2', which is not" in reason
    assert any("'build/enko2'" in note for note in notes)
