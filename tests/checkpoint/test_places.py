"""What is given away names its base without a path, and kprune finds it all the same."""

import shutil
from pathlib import Path

import pytest
from support.tiny_exports import exported
from support.tiny_folders import contents, read, save_model

from vllm_kprune.checkpoint.manifest import EXPORT_NAME, load_manifest
from vllm_kprune.checkpoint.places import find_place, public_name, remember_place
from vllm_kprune.checkpoint.verify import verify_overlay
from vllm_kprune.errors import KPruneError


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache."""
    monkeypatch.setenv("KPRUNE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.parametrize(
    ("reference", "path", "public"),
    [
        ("models/secret/mine", "/home/me/models/secret/mine", "mine"),
        ("models/mine", "/home/me/models/mine", "mine"),
        ("./mine", "/home/me/mine", "mine"),
        ("..", "/home/me", "me"),
        (".", "/home/me", "me"),
        ("/home/me/mine", "/home/me/mine", "mine"),
        ("~/mine", "/home/me/mine", "mine"),
        (r"C:\models\mine", "/mnt/c/models/mine", "mine"),
        ("org/name", "/hub/models--org--name/snapshots/0123", "org/name"),
        ("models/mine", "/hub/models--org--name/snapshots/0123", "mine"),
        ("name", "/hub/models--name/snapshots/0123", "name"),
    ],
)
def test_of_the_base_only_a_hub_id_or_a_last_name_is_told(
    reference: str, path: str, public: str
) -> None:
    assert public_name(reference, Path(path)) == public


def test_no_file_of_an_export_tells_a_path_and_verify_finds_the_base(tmp_path: Path) -> None:
    export = exported(save_model(tmp_path / "secret" / "model"))
    for name, content in contents(export).items():
        assert str(tmp_path).encode() not in content, name
    assert read(export / EXPORT_NAME)["base"]["reference"] == "model"
    assert load_manifest(export, EXPORT_NAME).check_base() == tmp_path / "secret" / "model"
    assert all(law.holds for law in verify_overlay(export, ["a text"]))


def test_elsewhere_the_base_is_asked_for(tmp_path: Path, cache: Path) -> None:
    model = save_model(tmp_path / "model")
    export = exported(model)
    shutil.rmtree(cache)
    with pytest.raises(KPruneError, match="not at model any more; give its folder with --base"):
        verify_overlay(export, ["a text"])
    assert all(law.holds for law in verify_overlay(export, ["a text"], base=model))


def test_a_name_is_never_taken_for_a_folder_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model").mkdir()
    monkeypatch.chdir(tmp_path)
    assert find_place("model", {"config.json": "0"}) is None


def test_an_absolute_path_is_the_only_place(tmp_path: Path) -> None:
    files = {"config.json": "0"}
    remember_place(files, tmp_path)
    assert find_place("model", files) == tmp_path
    assert find_place("model", {"config.json": "1"}) is None
    assert find_place(str(tmp_path / "gone"), files) is None


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"folder": 3}', '{"folder": "/not/here"}'])
def test_a_damaged_entry_is_none(tmp_path: Path, cache: Path, content: str) -> None:
    remember_place({}, tmp_path)
    [entry] = (cache / "places").iterdir()
    entry.write_text(content)
    assert find_place("model", {}) is None


def test_a_cache_that_cannot_be_written_forgets(tmp_path: Path, cache: Path) -> None:
    cache.write_text("a file")
    remember_place({}, tmp_path)
    assert find_place("model", {}) is None
