"""Impossible exports are refused in one line before any long work, and leave nothing behind."""

import os
import shutil
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
from support.tiny_exports import EMBEDDING, exported, flip, overlay_of
from support.tiny_folders import contents, edit

from vllm_kprune.checkpoint.export import export_overlay
from vllm_kprune.checkpoint.manifest import MANIFEST_NAME, load_manifest
from vllm_kprune.errors import KPruneError
from vllm_kprune.storage.digest import digest_file

Usage = namedtuple("Usage", "total used free")


def test_where_links_are_not_possible_the_way_out_is_said(
    sharded: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(source: object, target: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(KPruneError, match="without --link it is copied"):
        exported(sharded, link=True)
    assert not (sharded.parent / "export").exists()


def test_what_is_no_overlay_is_refused_with_the_way_out(model: Path, tmp_path: Path) -> None:
    with pytest.raises(KPruneError, match=r"kprune build MODEL --export"):
        export_overlay(model, tmp_path / "export")
    with pytest.raises(KPruneError, match="standalone checkpoint already"):
        export_overlay(exported(model), tmp_path / "again")
    with pytest.raises(KPruneError, match="is the base model itself"):
        export_overlay(tmp_path / "overlay", model, force=True)
    assert not (tmp_path / "again").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda model: flip(model / "model.safetensors", -1), "changed since"),
        (lambda model: (model / "model.safetensors").unlink(), "is missing since"),
        (lambda model: edit(model.parent / "overlay" / "config.json", x=1), "was edited"),
        (lambda model: edit(model.parent / "overlay" / MANIFEST_NAME, family="x"), "was edited"),
        (lambda model: model.rename(model.parent / "moved"), "--base FOLDER"),
    ],
)
@pytest.mark.slow
def test_a_changed_base_or_overlay_is_refused(model: Path, change: Any, said: str) -> None:
    overlay = overlay_of(model)
    change(model)
    with pytest.raises(KPruneError, match=said):
        export_overlay(overlay, model.parent / "export")
    assert not (model.parent / "export").exists()


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda data: data[:4], "not a readable safetensors"),
        (lambda data: b"\xff" * 8 + data[8:], "cannot have"),
        (lambda data: data[:-1], "not a readable safetensors"),
        (lambda data: data + b"\0", "overlap, leave gaps"),
        (lambda data: data.replace(b"F32", b"F16", 1), "bytes for F16"),
        (lambda data: data.replace(b'{"', b'["', 1), "not a readable safetensors"),
        (lambda data: data.replace(b"data_offsets", b"data_offsetz"), "not a readable"),
        (lambda data: data.replace(b'"shape":[', b'"shape":[-', 1), "has the shape"),
        (lambda data: data.replace(b"lm_head.weight", b"lm_head.height"), r"lm_head\.height"),
        (lambda data: data.replace(EMBEDDING.encode(), b"x"), "not a readable safetensors"),
    ],
)
@pytest.mark.slow
def test_damaged_weights_are_one_line(model: Path, spoil: Any, said: str) -> None:
    """Also when the manifest has been made to fit them."""
    overlay = overlay_of(model)
    path = model / "model.safetensors"
    path.write_bytes(spoil(path.read_bytes()))
    _reseal(overlay, model)
    with pytest.raises(KPruneError, match=said) as caught:
        export_overlay(overlay, model.parent / "export")
    assert "\n" not in str(caught.value)
    assert not (model.parent / "export").exists()


def _reseal(overlay: Path, model: Path, **changes: Any) -> None:
    manifest = load_manifest(overlay)
    files = {name: digest_file(model / name) for name in manifest.base.files}
    base = manifest.base.model_copy(update={"files": files})
    manifest.model_copy(update={"base": base, **changes}).write(overlay)


def test_a_table_of_another_size_is_refused(model: Path) -> None:
    overlay = overlay_of(model)
    _reseal(overlay, model, original_rows=load_manifest(overlay).original_rows + 1)
    with pytest.raises(KPruneError, match="original_rows is "):
        export_overlay(overlay, model.parent / "export")


@pytest.mark.parametrize("link", [True, False])
def test_too_little_room_is_found_before_anything_is_written(
    sharded: Path, monkeypatch: pytest.MonkeyPatch, link: bool
) -> None:
    overlay, output = overlay_of(sharded), sharded.parent / "export"
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: Usage(10**12, 10**12, 1000))
    with pytest.raises(KPruneError, match=r"needs 0\.07 GB, but the disk has 0\.00 GB") as caught:
        export_overlay(overlay, output, link=link)
    assert ("--link" in str(caught.value)) is not link
    assert not output.exists()


@pytest.mark.parametrize("link", [True, False])
@pytest.mark.slow
def test_exactly_the_room_that_the_weights_take_is_enough(
    sharded: Path, monkeypatch: pytest.MonkeyPatch, link: bool
) -> None:
    files = exported(sharded, link=link).glob("*.safetensors")
    needed = sum(path.stat().st_size for path in files if path.stat().st_nlink == 1)
    overlay, again = sharded.parent / "overlay", sharded.parent / "again"
    monkeypatch.setattr("vllm_kprune.checkpoint.export._ROOM_FOR_OTHER_FILES", 0)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: Usage(0, 0, needed - 1))
    with pytest.raises(KPruneError, match="the export needs"):
        export_overlay(overlay, again, link=link)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: Usage(0, 0, needed))
    export_overlay(overlay, again, link=link)


def test_force_replaces_an_export_or_overlay_and_nothing_else(model: Path, tmp_path: Path) -> None:
    export = exported(model)
    with pytest.raises(KPruneError, match="--force"):
        export_overlay(tmp_path / "overlay", export)
    export_overlay(tmp_path / "overlay", export, force=True)
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.txt").write_text("years of work")
    with pytest.raises(KPruneError, match="did not make"):
        export_overlay(tmp_path / "overlay", tmp_path / "thesis", force=True)
    export_overlay(tmp_path / "overlay", tmp_path / "overlay", force=True)
    assert contents(tmp_path / "overlay") == contents(export)


def test_a_check_that_fails_leaves_nothing(model: Path, tmp_path: Path) -> None:
    def refuse(folder: Path) -> None:
        assert (folder / "model.safetensors").is_file()
        raise KPruneError("no")

    with pytest.raises(KPruneError, match="no"):
        exported(model, check=refuse)
    assert not [path for path in tmp_path.iterdir() if "export" in path.name and path.is_dir()]
