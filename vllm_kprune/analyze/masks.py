"""Which weights of a model are zero: its pruning masks, one matrix at a time.

    masks = [FolderMasks(folder) for folder in folders]
    masks += [PackedMasks.of_model(model, "wanda-ko-0", ("ko",))]

A mask is kept as packed bits, an eighth of a byte for a weight. Matrices are those that `kprune
sparsify` prunes: all of the decoder layers but the router of experts. They are named by layer and
place, so that a folder and a model in memory can be compared. The calibration languages of a folder
come from its `kprune-sparsity.json`.
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Protocol, Self

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from vllm_kprune.analyze.decoder import decoder_layers
from vllm_kprune.arrays import Bytes
from vllm_kprune.checkpoint.shards import StoredTensor
from vllm_kprune.errors import KPruneError, shown
from vllm_kprune.sparsify.body import ModelBody, open_body, read_tensor
from vllm_kprune.sparsify.network import matrices_of
from vllm_kprune.sparsify.record import SPARSITY_NAME
from vllm_kprune.storage.bounded import NOTES, parse_json, read_object
from vllm_kprune.storage.folders import new_file

__all__ = [
    "FolderMasks",
    "Masks",
    "MatrixName",
    "PackedMasks",
    "calibration_languages",
    "pack_zeros",
]

_EXPERT = re.compile(r"\.experts\.\d+\.")
_HEADER = "kprune-masks"


class MatrixName(NamedTuple):
    """A matrix of a decoder layer, such as (3, "mlp.up_proj")."""

    layer: int
    place: str

    @property
    def kind(self) -> str:
        """Its place without the number of an expert."""
        return _EXPERT.sub(".experts.", self.place)


class Masks(Protocol):
    """The masks of one model."""

    @property
    def name(self) -> str:
        """What the model is called in results."""

    @property
    def languages(self) -> tuple[str, ...]:
        """The languages that it was calibrated with, in order; empty if that is not known."""

    @property
    def shapes(self) -> Mapping[MatrixName, tuple[int, ...]]:
        """The shape of each matrix."""

    def zeros(self, matrix: MatrixName) -> Bytes:
        """The packed bits of a matrix, row by row: 1 where its weight is zero."""


def pack_zeros(weights: torch.Tensor) -> Bytes:
    """The packed bits of a tensor: 1 where it is zero (or -0)."""
    return np.packbits((weights == 0).cpu().numpy().reshape(-1))


class FolderMasks:
    """The masks of a model's folder, read when they are needed."""

    def __init__(
        self, folder: str | Path, *, name: str | None = None, languages: tuple[str, ...] = ()
    ) -> None:
        """Raises `KPruneError` for a folder that is not a model with weights of its own."""
        self._body: ModelBody = open_body(folder)
        self._folder = self._body.base.folder
        self.name = name or self._folder.name
        self.languages = languages or calibration_languages(self._folder)

    @cached_property
    def _places(self) -> Mapping[MatrixName, tuple[str, StoredTensor]]:
        pattern = re.compile(re.escape(self._body.prefix) + r"layers\.(\d+)\.(.+)\.weight")
        found = {}
        for tensor, (shard, info) in self._body.places.items():
            match = pattern.fullmatch(tensor)
            if match and len(info.shape) == 2 and match[2].split(".")[-1] != "gate":
                found[MatrixName(int(match[1]), match[2])] = (shard, info)
        return dict(sorted(found.items()))

    @property
    def shapes(self) -> Mapping[MatrixName, tuple[int, ...]]:
        """The shape of each matrix."""
        return {matrix: info.shape for matrix, (_, info) in self._places.items()}

    def zeros(self, matrix: MatrixName) -> Bytes:
        """The packed bits of a matrix."""
        shard, info = self._places[matrix]
        return pack_zeros(read_tensor(self._folder / shard, info))


@dataclass(frozen=True)
class PackedMasks:
    """The masks of a model that need not be there any more."""

    name: str
    languages: tuple[str, ...]
    shapes: Mapping[MatrixName, tuple[int, ...]]
    packed: Mapping[MatrixName, Bytes]

    @classmethod
    def of_model(cls, model: Any, name: str, languages: tuple[str, ...] = ()) -> Self:
        """Of a transformers model in memory, not a mixture of experts."""
        weights = {
            MatrixName(layer, place): matrix.weight.detach()
            for layer, module in enumerate(decoder_layers(model))
            for place, matrix in matrices_of(module).items()
        }
        shapes = {matrix: tuple(values.shape) for matrix, values in sorted(weights.items())}
        packed = {matrix: pack_zeros(values) for matrix, values in weights.items()}
        return cls(name, languages, shapes, packed)

    def zeros(self, matrix: MatrixName) -> Bytes:
        """The packed bits of a matrix."""
        return self.packed[matrix]

    def save(self, path: Path) -> None:
        """Write a safetensors file: bits by layer and place, shapes in its header."""
        shapes = [[*matrix, list(shape)] for matrix, shape in self.shapes.items()]
        header = {"name": self.name, "languages": self.languages, "shapes": shapes}
        arrays = {_key(matrix): self.packed[matrix] for matrix in self.shapes}
        with new_file(path) as stream:
            stream.write(save(arrays, {_HEADER: json.dumps(header)}))

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` wrote. Raises `KPruneError` for another file."""
        try:
            with safe_open(path, "np") as stored:
                header = parse_json(stored.metadata()[_HEADER], NOTES)
                shapes = {MatrixName(n, place): tuple(s) for n, place, s in header["shapes"]}
                packed = {matrix: stored.get_tensor(_key(matrix)) for matrix in shapes}
            name, languages = header["name"], tuple(header["languages"])
            if not all(isinstance(text, str) for text in (name, *languages)):
                raise ValueError("its name or languages are no texts")
            for matrix, shape in shapes.items():
                _check_packed(matrix, shape, packed[matrix])
        except (KeyError, OSError, SafetensorError, TypeError, ValueError) as error:
            raise KPruneError(f"{path} is not a file of masks: {error}") from None
        return cls(name, languages, shapes, packed)


def _check_packed(matrix: MatrixName, shape: tuple[Any, ...], packed: Bytes) -> None:
    numbers = (matrix.layer, *shape)
    whole = all(type(n) is int and 0 <= n < 1 << 40 for n in numbers) and len(shape) == 2
    if not whole or packed.dtype != np.uint8 or packed.shape != (-(-math.prod(shape) // 8),):
        raise ValueError(
            f"the mask of {shown(_key(matrix))} does not have the shape {shown(shape)}"
        )


def _key(matrix: MatrixName) -> str:
    return f"{matrix.layer}.{matrix.place}"


def calibration_languages(folder: Path) -> tuple[str, ...]:
    """The calibration languages that a sparsified folder names, sorted; empty if it names none."""
    path = folder / SPARSITY_NAME
    if not path.is_file():
        return ()
    files = read_object(path, NOTES).get("calibration")
    named = [one.get("language") for one in files or () if isinstance(one, dict)]
    return tuple(sorted({one for one in named if isinstance(one, str)}))
