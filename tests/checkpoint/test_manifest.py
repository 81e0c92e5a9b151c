"""A manifest is trusted only if it is complete, and its base only if it is unchanged."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.tiny_folders import edit, read, save_model, write_json

from vllm_kprune.checkpoint.manifest import MANIFEST_NAME, Manifest, load_manifest
from vllm_kprune.checkpoint.overlay import build_overlay
from vllm_kprune.errors import KPruneError
from vllm_kprune.profile import Profile

FIELDS = sorted(set(Manifest.model_fields) - {"format", "fingerprint"})


@pytest.fixture
def overlay(tmp_path: Path) -> Path:
    """An overlay of a small model that keeps everything."""
    model = save_model(tmp_path / "model")
    build_overlay(str(model), Profile(name="original"), tmp_path / "overlay")
    return tmp_path / "overlay"


def reseal(overlay: Path) -> None:
    """Give an edited manifest the fingerprint of its new content, as an attacker would."""
    manifest = Manifest.model_validate(read(overlay / MANIFEST_NAME))
    edit(overlay / MANIFEST_NAME, fingerprint=manifest._fingerprint())


def test_what_is_written_is_read_back(overlay: Path) -> None:
    manifest = load_manifest(overlay)
    manifest.write(overlay)
    assert load_manifest(overlay) == manifest == manifest.sealed()
    assert manifest.kept_rows == manifest.kept_ids


def test_kept_ids_past_the_rows_have_none(overlay: Path) -> None:
    manifest = load_manifest(overlay).model_copy(
        update={"kept_ids": (1, 5, 8), "original_rows": 8, "reasons": "sss"}
    )
    assert manifest.kept_rows == (1, 5)


def _other(value: Any) -> Any:
    """A value of the same form that differs."""
    if value is None:  # a sizing that the profile does not have
        return 0.5
    if isinstance(value, str):
        return value + "s"
    if isinstance(value, int):
        return value + 1
    if isinstance(value, list):
        return value[:-1] if value else [{"source": "x", "digest": "y", "tokens": 1}]
    return {**value, next(iter(value)): _other(next(iter(value.values())))}


def _other_content(base: dict[str, Any]) -> dict[str, Any]:
    name, digest = next(iter(base["files"].items()))
    return {**base, "files": {**base["files"], name: {**digest, "size": digest["size"] + 1}}}


def test_the_fingerprint_is_that_of_the_content(tmp_path: Path) -> None:
    """The same model elsewhere, written at another time, gives the same one."""
    made = []
    for place in ("here", "there"):
        model = save_model(tmp_path / place)
        os.utime(model / "tokenizer.json", ns=(1, len(made) + 1))
        output = tmp_path / f"overlay-{place}"
        made.append(build_overlay(str(model), Profile(name="original"), output))
    assert made[0].fingerprint == made[1].fingerprint == load_manifest(output).fingerprint
    assert made[0].base != made[1].base
    edit(tmp_path / "there" / "generation_config.json", max_new_tokens=8)
    other = build_overlay(str(model), Profile(name="original"), tmp_path / "other")
    assert other.fingerprint != made[1].fingerprint


@pytest.mark.parametrize("field", FIELDS)
def test_an_edit_of_any_field_is_noticed(overlay: Path, field: str) -> None:
    before = read(overlay / MANIFEST_NAME)
    # Of the base, what counts is its content (see below).
    other = _other_content(before["base"]) if field == "base" else _other(before[field])
    edit(overlay / MANIFEST_NAME, **{field: other})
    with pytest.raises(KPruneError, match=r"was edited|build the overlay again"):
        load_manifest(overlay)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 2}, "format"),
        ({"extra": 1}, "extra"),
        ({"kept_ids": []}, "kept_ids"),
        ({"kept_ids": [1, "2"]}, "kept_ids.1"),
        ({"kept_ids": [1, 2.0]}, "kept_ids.1"),
        ({"kept_ids": [True]}, "kept_ids.0"),
        ({"kept_ids": [-1]}, "kept_ids.0"),
        ({"kept_ids": [1 << 24]}, "kept_ids.0"),
        ({"kept_ids": {}}, "kept_ids"),
        ({"kept_ids": [2, 1], "reasons": "ss"}, "kept_ids must increase"),
        ({"kept_ids": [1, 1], "reasons": "ss"}, "kept_ids must increase"),
        ({"kept_ids": [9999], "reasons": "s"}, "outside the original vocabulary"),
        ({"kept_ids": [1, 2], "reasons": "s"}, "1 reasons for 2 kept ids"),
        ({"vocabulary_tensors": []}, "vocabulary_tensors"),
        ({"profile": {"name": "x", "unknown": 1}}, "profile: unknown option .unknown."),
        ({"base": None}, "base"),
        ({"files": {"../evil": "x"}}, "files"),
        ({"files": {".hidden": "x"}}, "files"),
        ({"files": {"a/b": "x"}}, "files"),
        ({"files": {"a\\b": "x"}}, "files"),
        ({"files": {"/etc/passwd": "x"}}, "files"),
        ({"files": {"": "x"}}, "files"),
        ({"files": {"a\x00": "x"}}, "files"),
        ({"files": {"a" * 256: "x"}}, "files"),
    ],
)
def test_a_manifest_of_another_form_is_refused_by_field(
    overlay: Path, changes: dict[str, Any], message: str
) -> None:
    edit(overlay / MANIFEST_NAME, **changes)
    with pytest.raises(KPruneError, match=message) as caught:
        load_manifest(overlay)
    assert MANIFEST_NAME in str(caught.value)


@pytest.mark.parametrize("name", ["../model/config.json", "/etc/passwd", "..", "a/b"])
def test_files_of_the_base_never_leave_its_folder(overlay: Path, name: str) -> None:
    base = read(overlay / MANIFEST_NAME)["base"]
    files = {name: next(iter(base["files"].values()))}
    edit(overlay / MANIFEST_NAME, base={**base, "files": files})
    with pytest.raises(KPruneError, match=r"base.files"):
        load_manifest(overlay)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b'"x"',
        b"\xff",
        b"[" * 100_000,
        b'{"format":' * 50_000,
        b'{"format":' + b"1" * 5000 + b"}",
        b"{}",
    ],
)
def test_a_file_that_is_no_manifest_is_refused(overlay: Path, content: bytes) -> None:
    (overlay / MANIFEST_NAME).write_bytes(content)
    with pytest.raises(KPruneError, match="build the overlay again"):
        load_manifest(overlay)


def test_a_huge_manifest_is_refused_unread(overlay: Path) -> None:
    with (overlay / MANIFEST_NAME).open("r+b") as stream:
        stream.truncate((64 << 20) + 1)
    with pytest.raises(KPruneError, match="larger than 64 MiB"):
        load_manifest(overlay)


@pytest.mark.timeout(20)
@pytest.mark.parametrize("kind", ["missing", "folder", "pipe", "device"])
def test_what_is_not_a_file_is_refused_and_not_read(overlay: Path, kind: str) -> None:
    path = overlay / MANIFEST_NAME
    path.unlink()
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    with pytest.raises(KPruneError, match=r"kprune\.json"):
        load_manifest(overlay)


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.write_bytes(path.read_bytes() + b"\0"), "changed since"),
        (_flip, "changed since"),
        (Path.unlink, "is missing since"),
    ],
)
@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_changed_base_is_refused_by_file(
    overlay: Path, name: str, damage: Callable[[Path], None], message: str
) -> None:
    manifest = load_manifest(overlay)
    damage(Path(manifest.base.path) / name)
    with pytest.raises(KPruneError, match=f"{name} {message} .*build the overlay again"):
        manifest.check_base()


def test_a_base_that_was_only_touched_is_still_the_same(overlay: Path) -> None:
    manifest = load_manifest(overlay)
    base = Path(manifest.base.path)
    for path in base.iterdir():
        os.utime(path, ns=(0, 0))
    assert manifest.check_base() == base


def test_a_base_that_was_moved_is_refused_until_its_folder_is_given(overlay: Path) -> None:
    manifest = load_manifest(overlay)
    moved = Path(manifest.base.path).rename(overlay.parent / "moved")
    with pytest.raises(KPruneError, match=r"not at .*model any more; name it where it is now"):
        manifest.check_base()
    with pytest.raises(KPruneError, match=r"any more; give its folder with --kprune-base FOLDER"):
        manifest.check_base(option="--kprune-base")
    assert manifest.check_base(moved) == moved
    with pytest.raises(KPruneError, match="is missing"):
        manifest.check_base(overlay.parent)


@pytest.mark.parametrize("name", ["tokenizer.json", "config.json", "LICENSE"])
def test_an_edited_or_missing_file_of_the_overlay_is_named(overlay: Path, name: str) -> None:
    manifest = load_manifest(overlay)
    manifest.check_files(overlay)
    _flip(overlay / name)
    with pytest.raises(KPruneError, match=f"{name} was edited"):
        manifest.check_files(overlay)
    (overlay / name).unlink()
    with pytest.raises(KPruneError, match=f"{name} is missing"):
        manifest.check_files(overlay)


def test_a_manifest_with_a_seal_of_its_own_is_still_checked_field_by_field(overlay: Path) -> None:
    edit(overlay / MANIFEST_NAME, family="other")
    reseal(overlay)
    assert load_manifest(overlay).family == "other"
    ids = json.loads((overlay / MANIFEST_NAME).read_text())["kept_ids"]
    write_json(overlay / MANIFEST_NAME, {**read(overlay / MANIFEST_NAME), "kept_ids": ids[::-1]})
    reseal(overlay)
    with pytest.raises(KPruneError, match="must increase"):
        load_manifest(overlay)
