"""The body of a model: its decoder layers' tensors, read from and written to safetensors files.

Data types and places never change, so a sparsified model's files are the original's with other
bytes in some places. Tensors are read one at a time. They are not mapped: mapped pages
would count as memory.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from vllm_kprune.checkpoint.base import BaseModel, open_base
from vllm_kprune.checkpoint.manifest import is_overlay
from vllm_kprune.checkpoint.shards import StoredTensor, read_shard
from vllm_kprune.errors import KPruneError

__all__ = [
    "ModelBody",
    "checked_dtype",
    "mapped_tensor",
    "open_body",
    "read_tensor",
    "write_tensor",
]

_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True)
class ModelBody:
    """A checked model, and where each of its tensors is: file name and place."""

    base: BaseModel
    places: Mapping[str, tuple[str, StoredTensor]]
    prefix: str
    num_layers: int

    @property
    def embedding(self) -> torch.Tensor:
        """The embedding [rows, hidden] in the file's data type; its pages are read on use."""
        shard, info = self.places[self.base.family.embedding]
        return mapped_tensor(self.base.folder / shard, info)

    def layer_prefix(self, layer: int) -> str:
        """What the names of a layer's tensors begin with."""
        return f"{self.prefix}layers.{layer}."


def open_body(
    model: str | Path, revision: str | None = None, *, work: str = "sparsify"
) -> ModelBody:
    """Open a model with weights of its own. Raises `KPruneError` for all that cannot be pruned.

    `work` is what is to be done with it, for the message about a quantised model.
    """
    folder = Path(model).expanduser()
    if is_overlay(folder):
        raise KPruneError(
            f"{folder} is an overlay, which has no weights of its own; write them out first: "
            f"kprune export {folder} -o DIR"
        )
    base = open_base(model, revision)
    if base.family.body_refused:
        raise KPruneError(
            f"{base.folder}: kprune cannot {work} {base.family.architecture}: "
            f"{base.family.body_refused}; its vocabulary can be pruned"
        )
    _refuse_quantised(base, work)
    shards = [read_shard(base.folder / name) for name in base.shards]
    places = {t.name: (shard.path.name, t) for shard in shards for t in shard.tensors}
    prefix = base.family.embedding.removesuffix("embed_tokens.weight")
    return ModelBody(base, places, prefix, _count_layers(places, prefix, base.folder))


def _refuse_quantised(base: BaseModel, work: str) -> None:
    for config in (base.config, base.family.text(base.config)):
        settings = config.get("quantization_config") or config.get("compression_config")
        if settings:
            method = settings.get("quant_method") if isinstance(settings, dict) else None
            raise KPruneError(
                f"{base.folder} is quantised{f' ({method})' if method else ''}; {work} the "
                "unquantised checkpoint, then quantise the result"
            )


def _count_layers(places: Mapping[str, object], prefix: str, folder: Path) -> int:
    pattern = re.compile(re.escape(prefix) + r"layers\.(\d+)\.")
    numbers = {int(found[1]) for name in places if (found := pattern.match(name))}
    if not numbers or numbers != set(range(len(numbers))):
        raise KPruneError(f"{folder}: expected tensors {prefix}layers.0. and so on without gaps")
    return len(numbers)


def checked_dtype(info: StoredTensor) -> torch.dtype:
    """The data type of a plain tensor; `KPruneError` for one that looks quantised."""
    if info.dtype not in _DTYPES:
        raise KPruneError(
            f"{info.name} is {info.dtype}; expected F32, F16 or BF16: sparsify the unquantised "
            "checkpoint, then quantise the result"
        )
    return _DTYPES[info.dtype]


def mapped_tensor(path: Path, info: StoredTensor) -> torch.Tensor:
    """A tensor that stays in its file until it is used."""
    dtype = checked_dtype(info)
    # Mode "c": PyTorch warns of arrays that cannot be written to, which nobody does here.
    data = np.memmap(path, np.uint8, mode="c", offset=info.offset, shape=(info.bytes,))
    return torch.from_numpy(data).view(dtype).reshape(info.shape)


def read_tensor(path: Path, info: StoredTensor) -> torch.Tensor:
    """A copy of a tensor in the file's data type."""
    data = bytearray(info.bytes)
    with path.open("rb", buffering=0) as stream:
        stream.seek(info.offset)
        view, done = memoryview(data), 0
        while done < info.bytes:
            count = stream.readinto(view[done:])
            if not count:
                raise KPruneError(f"{path} became shorter while it was read; try again")
            done += count
    return torch.frombuffer(data, dtype=checked_dtype(info)).reshape(info.shape)


def write_tensor(path: Path, info: StoredTensor, values: torch.Tensor) -> None:
    """Overwrite a tensor in its place."""
    assert values.dtype == checked_dtype(info) and tuple(values.shape) == info.shape
    data = values.contiguous().view(torch.uint8).numpy().tobytes()
    with path.open("r+b", buffering=0) as stream:
        stream.seek(info.offset)
        view = memoryview(data)
        while view:
            view = view[stream.write(view) :]
