"""Standalone checkpoints: every byte is the base's, whatever the data type or number of files."""

import json
import re
import shutil
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import save_file
from support.tiny_exports import (
    DTYPES,
    EMBEDDING,
    HEAD,
    HIDDEN,
    INDEX,
    THAI,
    assert_same_weights,
    body,
    exported,
    flip,
    overlay_of,
    rows_of,
    save,
    sparse_weights,
    stored,
    tensor,
)
from support.tiny_folders import contents, read, save_model

from vllm_kprune.checkpoint.export import export_overlay
from vllm_kprune.checkpoint.manifest import (
    EXPORT_NAME,
    MANIFEST_NAME,
    is_overlay,
    load_manifest,
)
from vllm_kprune.checkpoint.overlay import build_overlay
from vllm_kprune.checkpoint.verify import verify_overlay
from vllm_kprune.profile import Profile


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("dtype", sorted(DTYPES))
@pytest.mark.slow
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


@pytest.mark.slow
def test_files_that_nothing_names_are_found_through_a_new_index(model: Path) -> None:
    """vLLM loads any *.safetensors where there is no index; transformers would not find them."""
    (model / "model.safetensors").rename(model / "weights.safetensors")
    export = exported(model)
    weight_map = read(export / INDEX)["weight_map"]
    assert weight_map == dict.fromkeys((HEAD, EMBEDDING), "weights.safetensors")


@pytest.mark.parametrize("link", [True, False])
@pytest.mark.slow
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


def test_other_files_are_the_overlays_and_nothing_takes_it_for_an_overlay(model: Path) -> None:
    (model / "modeling_evil.py").write_text("raise SystemExit")
    export = exported(model)
    overlay, files = contents(model.parent / "overlay"), contents(export)
    record, manifest = json.loads(files.pop(EXPORT_NAME)), json.loads(overlay.pop(MANIFEST_NAME))
    assert record["base"].pop("path") == record["base"].pop("reference") == "model"
    assert manifest["base"].pop("path") == manifest["base"].pop("reference") == str(model)
    assert record == manifest
    del files["model.safetensors"]
    assert files == overlay
    assert "LICENSE" in files
    assert not is_overlay(export)
    kept = load_manifest(export, EXPORT_NAME).kept_rows
    assert read(export / "config.json")["vocab_size"] == len(kept)


def test_a_base_that_was_moved_is_named(model: Path) -> None:
    overlay = overlay_of(model)
    moved = model.rename(model.parent / "moved")
    export_overlay(overlay, model.parent / "export", base=moved)
    assert_same_weights(moved, model.parent / "export")


def test_a_token_past_the_embedding_has_no_row_and_stays_past_it(tmp_path: Path) -> None:
    """Gemma-3's tokenizer has such an id: 262,145 tokens for 262,144 rows."""
    model = save_model(tmp_path / "model", spare_rows=-1)
    build_overlay(str(model), Profile(name="original"), tmp_path / "overlay")
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


@pytest.mark.slow
def test_the_laws_and_the_weights_of_an_export_can_be_verified(sharded: Path) -> None:
    export = exported(sharded)
    results = {result.law: result for result in verify_overlay(export, ["오늘 날씨가 좋다"])}
    assert sorted(results) == [1, 2, 3, 4, 5, 6]
    assert all(result.holds for law, result in results.items() if law != 3)
    kept = load_manifest(export, EXPORT_NAME).kept_rows
    assert results[4].checked == 2 * (len(kept) + 1) + 3


@pytest.mark.parametrize(
    ("file", "position", "said"),
    [
        (1, -1, "row|model.layers.0.a"),
        (2, -1, "model.layers.0.weight differs|model.norm.weight differs"),
        (3, -1, "lm_head.weight: row [0-9]+ is not row [0-9]+"),
    ],
)
@pytest.mark.slow
def test_one_changed_bit_in_the_weights_is_found(
    sharded: Path, file: int, position: int, said: str
) -> None:
    export = exported(sharded)
    flip(export / f"model-0000{file}-of-00003.safetensors", position)
    (broken,) = (result for result in verify_overlay(export, []) if result.law == 4)
    assert re.search(said, str(broken.counter_example))
    with pytest.raises(AssertionError):
        assert_same_weights(sharded, export)


@pytest.mark.slow
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


@pytest.mark.slow
def test_memory_does_not_grow_with_the_model(model: Path) -> None:
    """Not even the kept rows are in memory: 100 MB of them pass through a few blocks."""
    size = sparse_weights(model, 1 << 16)
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
