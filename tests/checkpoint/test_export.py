"""Standalone checkpoints: every byte is the base's, whatever the data type or number of files."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import tracemalloc
from collections import namedtuple
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import deserialize
from safetensors.torch import save_file
from tiny_folders import contents, edit, read, save_model, write_json

from vllm_kprune.checkpoint.export import export_overlay
from vllm_kprune.checkpoint.manifest import (
    EXPORT_NAME,
    MANIFEST_NAME,
    Manifest,
    is_overlay,
    load_manifest,
)
from vllm_kprune.checkpoint.overlay import build_overlay
from vllm_kprune.checkpoint.verify import verify_overlay
from vllm_kprune.errors import KPruneError
from vllm_kprune.profile import Profile

THAI = Profile(name="thai", languages=("th",), code=False)
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
INDEX = "model.safetensors.index.json"
HIDDEN = 6

DTYPES = {
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "F32": torch.float32,
    "F64": torch.float64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}

Stored = Mapping[str, Mapping[str, Any]]
Usage = namedtuple("Usage", "total used free")


def tensor(dtype: str, *shape: int) -> torch.Tensor:
    """Random bytes as a tensor: also bit patterns that are not a number have to survive."""
    size = int(np.prod(shape)) * DTYPES[dtype].itemsize
    data = np.random.default_rng(size).integers(0, 256, size, np.uint8)
    return torch.from_numpy(data).view(DTYPES[dtype]).reshape(shape)


def stored(path: Path) -> Stored:
    """Tensors of a file, read by the safetensors library: dtype, shape and bytes."""
    return dict(deserialize(path.read_bytes()))


def metadata(path: Path) -> Any:
    """`__metadata__` of a file."""
    data = path.read_bytes()
    return json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")]).get("__metadata__")


def save(model: Path, shards: Mapping[str, dict[str, torch.Tensor]], **totals: int) -> Path:
    """Give a model folder these weight files, with an index if there are several."""
    (model / "model.safetensors").unlink()
    for name, tensors in shards.items():
        save_file(tensors, model / name, {"format": "pt", "of": name})
    if len(shards) > 1:
        places = {tensor: name for name, tensors in shards.items() for tensor in tensors}
        write_json(model / INDEX, {"metadata": totals, "weight_map": places})
    return model


def body(dtype: str) -> dict[str, torch.Tensor]:
    return {"model.layers.0.weight": tensor(dtype, 8, 5), "model.norm.weight": tensor(dtype, 5)}


def rows_of(model: Path) -> int:
    rows: int = read(model / "config.json")["vocab_size"]
    return rows


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model with a float32 embedding and head in one file, and rows past the tokenizer."""
    return save_model(tmp_path / "model")


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    """Three bfloat16 shards: embedding and a layer, layers alone, head alone."""
    model = save_model(tmp_path / "sharded")
    rows = rows_of(model)
    shards = {
        "model-00001-of-00003.safetensors": {
            EMBEDDING: tensor("BF16", rows, HIDDEN),
            "model.layers.0.a": tensor("BF16", 3, 3),
        },
        "model-00002-of-00003.safetensors": body("BF16"),
        "model-00003-of-00003.safetensors": {HEAD: tensor("BF16", rows, HIDDEN)},
    }
    parameters = 2 * rows * HIDDEN + 9 + 40 + 5
    return save(model, shards, total_size=2 * parameters, total_parameters=parameters)


def overlay_of(model: Path) -> Path:
    """An overlay beside the model."""
    build_overlay(str(model), THAI, model.parent / "overlay")
    return model.parent / "overlay"


def exported(model: Path, **options: Any) -> Path:
    """An export beside the model."""
    export_overlay(overlay_of(model), model.parent / "export", **options)
    return model.parent / "export"


def gathered(entry: Mapping[str, Any], manifest: Manifest) -> bytes:
    """The bytes of a vocabulary tensor's kept rows."""
    table = np.frombuffer(entry["data"], np.uint8).reshape(manifest.original_rows, -1)
    return table[list(manifest.kept_rows)].tobytes()


def assert_same_weights(model: Path, export: Path) -> None:
    """Vocabulary tensors hold the kept rows, everything else is as it was, in the same files."""
    manifest = load_manifest(export, EXPORT_NAME)
    files = sorted(path.name for path in model.glob("*.safetensors"))
    assert files == sorted(path.name for path in export.glob("*.safetensors"))
    for name in files:
        before, after = stored(model / name), stored(export / name)
        assert before.keys() == after.keys()
        assert metadata(model / name) == metadata(export / name)
        for key, entry in before.items():
            expected = dict(entry)
            if key in (EMBEDDING, HEAD):
                expected["data"] = gathered(entry, manifest)
                expected["shape"] = [len(manifest.kept_rows), *entry["shape"][1:]]
            assert after[key] == expected, key


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("dtype", sorted(DTYPES))
def test_kept_rows_are_those_of_the_base_in_any_data_type(
    tmp_path: Path, dtype: str, tied: bool
) -> None:
    model = save_model(tmp_path / "model")
    tensors = {EMBEDDING: tensor(dtype, rows_of(model), HIDDEN), **body("F32")}
    if not tied:
        tensors[HEAD] = tensor(dtype, rows_of(model), HIDDEN)
    export = exported(save(model, {"model.safetensors": tensors}))
    assert stored(export / "model.safetensors")[EMBEDDING]["dtype"] == dtype
    assert_same_weights(model, export)
    assert not (export / INDEX).exists()


def test_some_rows_go_and_some_stay(model: Path) -> None:
    """Or all of these tests would prove nothing."""
    manifest = load_manifest(exported(model), EXPORT_NAME)
    assert 200 < len(manifest.kept_rows) < manifest.original_rows - 100


def test_data_stays_aligned_where_a_narrow_tensor_comes_first(model: Path, tmp_path: Path) -> None:
    """Other writers sort tensors differently; cutting rows of 5 bytes would shift the float32."""
    rows = rows_of(model) // 4 * 4
    header = {
        EMBEDDING: {"dtype": "F8_E4M3", "shape": [rows, 5], "data_offsets": [0, rows * 5]},
        "x": {"dtype": "F32", "shape": [2], "data_offsets": [rows * 5, rows * 5 + 8]},
    }
    text = json.dumps(header).encode()
    data = np.random.default_rng(0).integers(0, 256, rows * 5 + 8, np.uint8).tobytes()
    path = model / "model.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    export = exported(model)
    assert_same_weights(model, export)
    raw = (export / "model.safetensors").read_bytes()
    length = int.from_bytes(raw[:8], "little")
    place = json.loads(raw[8 : 8 + length])["x"]["data_offsets"][0]
    assert length % 8 == 0 and place % 4 == 0


def test_several_shards_keep_their_names_and_the_index_is_right(sharded: Path) -> None:
    export = exported(sharded)
    assert_same_weights(sharded, export)
    index = read(export / INDEX)
    assert index["weight_map"] == read(sharded / INDEX)["weight_map"]
    tensors = [t for path in export.glob("*.safetensors") for t in stored(path).values()]
    parameters = sum(int(np.prod(tensor["shape"])) for tensor in tensors)
    assert index["metadata"] == {
        "total_size": sum(len(tensor["data"]) for tensor in tensors),
        "total_parameters": parameters,
    }
    assert index["metadata"]["total_size"] == 2 * parameters


def test_files_that_nothing_names_are_found_through_a_new_index(model: Path) -> None:
    """vLLM loads any *.safetensors where there is no index; transformers would not find them."""
    (model / "model.safetensors").rename(model / "weights.safetensors")
    export = exported(model)
    weight_map = read(export / INDEX)["weight_map"]
    assert weight_map == dict.fromkeys((HEAD, EMBEDDING), "weights.safetensors")


@pytest.mark.parametrize("link", [True, False])
def test_untouched_shards_are_copied_or_linked_when_asked(sharded: Path, link: bool) -> None:
    export = exported(sharded, link=link)
    linked = {p.name for p in export.glob("*.safetensors") if p.samefile(sharded / p.name)}
    assert linked == ({"model-00002-of-00003.safetensors"} if link else set())
    assert_same_weights(sharded, export)


def test_links_lead_to_the_files_of_the_hubs_cache(sharded: Path) -> None:
    """A snapshot there holds symbolic links to blobs."""
    name = "model-00002-of-00003.safetensors"
    blob = (sharded / name).rename(sharded.parent / "blob")
    (sharded / name).symlink_to(blob)
    export = exported(sharded, link=True)
    assert (export / name).samefile(blob) and not (export / name).is_symlink()


def test_where_links_are_not_possible_the_way_out_is_said(
    sharded: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(source: object, target: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(KPruneError, match="leave --link out"):
        exported(sharded, link=True)
    assert not (sharded.parent / "export").exists()


def test_other_files_are_the_overlays_and_nothing_takes_it_for_an_overlay(model: Path) -> None:
    (model / "modeling_evil.py").write_text("raise SystemExit")
    export = exported(model)
    overlay, files = contents(model.parent / "overlay"), contents(export)
    assert files.pop(EXPORT_NAME) == overlay.pop(MANIFEST_NAME)
    del files["model.safetensors"]
    assert files == overlay
    assert "LICENSE" in files
    assert not is_overlay(export)
    kept = load_manifest(export, EXPORT_NAME).kept_rows
    assert read(export / "config.json")["vocab_size"] == len(kept)


def test_a_token_past_the_embedding_has_no_row_and_stays_past_it(tmp_path: Path) -> None:
    """Gemma-3's tokenizer has such an id: 262,145 tokens for 262,144 rows."""
    model = save_model(tmp_path / "model", spare_rows=-1)
    overlay_of(model)
    manifest = load_manifest(tmp_path / "overlay")
    kept = Profile(name="original")
    build_overlay(str(model), kept, tmp_path / "overlay", force=True)
    export_overlay(tmp_path / "overlay", tmp_path / "export")
    manifest = load_manifest(tmp_path / "export", EXPORT_NAME)
    assert len(manifest.kept_rows) == len(manifest.kept_ids) - 1 == rows_of(tmp_path / "export")
    assert_same_weights(model, tmp_path / "export")


def test_exporting_twice_gives_the_same_bytes_and_pruning_an_export_changes_nothing(
    model: Path, tmp_path: Path
) -> None:
    export = exported(model)
    export_overlay(tmp_path / "overlay", tmp_path / "second")
    assert contents(export) == contents(tmp_path / "second")
    build_overlay(str(export), THAI, tmp_path / "again")
    export_overlay(tmp_path / "again", tmp_path / "third")
    first, third = contents(export), contents(tmp_path / "third")
    assert first.pop(EXPORT_NAME) != third.pop(EXPORT_NAME)  # another base
    assert first == third


def test_the_laws_and_the_weights_of_an_export_can_be_verified(sharded: Path) -> None:
    export = exported(sharded)
    results = {result.law: result for result in verify_overlay(export, ["오늘 날씨가 좋다"])}
    assert sorted(results) == [1, 2, 3, 4, 5, 6]
    assert all(result.holds for law, result in results.items() if law != 3)
    kept = load_manifest(export, EXPORT_NAME).kept_rows
    assert results[4].checked == 2 * (len(kept) + 1) + 3


def _flip(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("file", "position", "said"),
    [
        (1, -1, "row|model.layers.0.a"),
        (2, -1, "model.layers.0.weight differs|model.norm.weight differs"),
        (3, -1, "lm_head.weight: row [0-9]+ is not row [0-9]+"),
    ],
)
def test_one_changed_bit_in_the_weights_is_found(
    sharded: Path, file: int, position: int, said: str
) -> None:
    export = exported(sharded)
    _flip(export / f"model-0000{file}-of-00003.safetensors", position)
    (broken,) = (result for result in verify_overlay(export, []) if result.law == 4)
    assert re.search(said, str(broken.counter_example))
    with pytest.raises(AssertionError):
        assert_same_weights(sharded, export)


def test_missing_and_foreign_tensors_are_found(sharded: Path) -> None:
    export = exported(sharded)
    path = export / "model-00002-of-00003.safetensors"
    for tensors, said in [
        ({"model.norm.weight": tensor("BF16", 5)}, "model.layers.0.weight is missing"),
        (body("BF16") | {"extra": tensor("F16", 1)}, "extra is not in the base"),
        (body("F16"), r"is F16[8, 5], expected BF16[8, 5]"),
    ]:
        save_file(tensors, path, {"format": "pt", "of": path.name})
        (broken,) = (result for result in verify_overlay(export, []) if result.law == 4)
        assert said in str(broken.counter_example)
    path.unlink()
    (broken,) = (result for result in verify_overlay(export, []) if result.law == 4)
    assert f"{path.name} is missing" in str(broken.counter_example)


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
        (lambda model: _flip(model / "model.safetensors", -1), "changed since"),
        (lambda model: (model / "model.safetensors").unlink(), "is missing since"),
        (lambda model: edit(model.parent / "overlay" / "config.json", x=1), "was edited"),
        (lambda model: edit(model.parent / "overlay" / MANIFEST_NAME, family="x"), "was edited"),
        (lambda model: model.rename(model.parent / "moved"), "--base FOLDER"),
    ],
)
def test_a_changed_base_or_overlay_is_refused(model: Path, change: Any, said: str) -> None:
    overlay = overlay_of(model)
    change(model)
    with pytest.raises(KPruneError, match=said):
        export_overlay(overlay, model.parent / "export")
    assert not (model.parent / "export").exists()


def test_a_base_that_was_moved_is_named(model: Path) -> None:
    overlay = overlay_of(model)
    moved = model.rename(model.parent / "moved")
    export_overlay(overlay, model.parent / "export", base=moved)
    assert_same_weights(moved, model.parent / "export")


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
        (lambda data: data.replace(b"lm_head.weight", b"lm_head.height"), "holds no lm_head"),
        (lambda data: data.replace(EMBEDDING.encode(), b"x"), "not a readable safetensors"),
    ],
)
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
    from vllm_kprune.checkpoint.digest import digest_file

    manifest = load_manifest(overlay)
    files = {name: digest_file(model / name) for name in manifest.base.files}
    base = manifest.base.model_copy(update={"files": files})
    manifest.model_copy(update={"base": base, **changes}).write(overlay)


def test_a_table_of_another_size_is_refused(model: Path) -> None:
    overlay = overlay_of(model)
    _reseal(overlay, model, original_rows=load_manifest(overlay).original_rows + 1)
    with pytest.raises(KPruneError, match=r"expected [0-9]+ rows of whole bytes"):
        export_overlay(overlay, model.parent / "export")


@pytest.mark.parametrize("link", [True, False])
def test_too_little_room_is_found_before_anything_is_written(
    sharded: Path, monkeypatch: pytest.MonkeyPatch, link: bool
) -> None:
    overlay, output = overlay_of(sharded), sharded.parent / "export"
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: Usage(10**12, 10**12, 1000))
    with pytest.raises(KPruneError, match=r"needs 0\.07 GB and the disk has 0\.00 GB") as caught:
        export_overlay(overlay, output, link=link)
    assert ("--link" in str(caught.value)) is not link
    assert not output.exists()


def test_links_take_no_room(sharded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    overlay = overlay_of(sharded)
    rewritten = [1, 3]
    sizes = [(sharded / f"model-0000{n}-of-00003.safetensors").stat().st_size for n in rewritten]
    monkeypatch.setattr("vllm_kprune.checkpoint.export._ROOM_FOR_OTHER_FILES", 0)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: Usage(0, 0, sum(sizes)))
    export_overlay(overlay, sharded.parent / "export", link=True)


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


def _sparse_weights(model: Path, width: int) -> int:
    """Make the model's weights an embedding of this many float32 columns, all holes; its bytes."""
    rows = rows_of(model)
    size = rows * width * 4
    entry = {"dtype": "F32", "shape": [rows, width], "data_offsets": [0, size]}
    text = json.dumps({EMBEDDING: entry}).encode()
    with (model / "model.safetensors").open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        stream.truncate(8 + len(text) + size)
    return size


def test_memory_does_not_grow_with_the_model(model: Path) -> None:
    """Not even the kept rows are in memory: 100 MB of them pass through a few blocks."""
    size = _sparse_weights(model, 1 << 16)
    overlay = overlay_of(model)
    kept = load_manifest(overlay).kept_rows
    tracemalloc.start()
    try:
        export_overlay(overlay, model.parent / "export")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert size > 150e6 and len(kept) * (4 << 16) > 50e6
    assert peak < 16e6
    shutil.rmtree(model.parent / "export")


_EXPORT = """
import sys, time
from pathlib import Path
from vllm_kprune.checkpoint import export, shards
overlay, output = map(Path, sys.argv[1:])
def slow(step, share):
    if step == "write weights" and share > 0:
        print("writing", flush=True)
        time.sleep(60)
export.export_overlay(overlay, output, progress=slow)
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_an_export_that_is_killed_leaves_nothing_that_looks_finished(
    model: Path, tmp_path: Path, how: signal.Signals
) -> None:
    _sparse_weights(model, 1 << 15)
    overlay, output = overlay_of(model), tmp_path / "export"
    command = [sys.executable, "-c", _EXPORT, str(overlay), str(output)]
    quiet = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    with subprocess.Popen(command, **quiet) as process:  # type: ignore[call-overload]
        assert process.stdout.readline() == "writing\n"
        process.send_signal(how)
    assert process.returncode != 0
    assert not output.exists()
    halves = list(tmp_path.glob(".export.tmp-*/new/model.safetensors"))
    assert len(halves) == (1 if how == signal.SIGKILL else 0)
    began = time.monotonic()
    export_overlay(overlay, output)  # sweeps
    assert time.monotonic() - began < 60
    assert not list(tmp_path.glob(".export.tmp-*"))
    assert load_manifest(output, EXPORT_NAME)
