"""Models with weights of any data type in any number of files, their overlays and their exports."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import deserialize
from safetensors.torch import save_file

from support.tiny_folders import read, save_model, write_json
from vllm_kprune.checkpoint.export import export_overlay
from vllm_kprune.checkpoint.manifest import EXPORT_NAME, Manifest, load_manifest
from vllm_kprune.checkpoint.overlay import build_overlay
from vllm_kprune.profile import Profile

THAI = Profile(name="thai", languages=("th",), genres=())
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


def save_sharded(folder: Path) -> Path:
    """Three bfloat16 shards: embedding and a layer, layers alone, head alone."""
    model = save_model(folder)
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


def flip(path: Path, position: int) -> None:
    """Change one bit of a byte."""
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


def sparse_weights(model: Path, width: int) -> int:
    """Make the model's weights an embedding of this many float32 columns, all holes; its bytes."""
    rows = rows_of(model)
    size = rows * width * 4
    entry = {"dtype": "F32", "shape": [rows, width], "data_offsets": [0, size]}
    text = json.dumps({EMBEDDING: entry}).encode()
    with (model / "model.safetensors").open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        stream.truncate(8 + len(text) + size)
    return size
