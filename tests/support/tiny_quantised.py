"""Quantise the body of a small saved model, as the tools that publish such models write it.

Weights are [outputs, inputs] and rounded to symmetric integers; embedding, head and norms stay as
they are. Formats: compressed-tensors INT8 with dynamic activations, compressed-tensors INT4, GPTQ
and AWQ.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file, save_file

Tensors = dict[str, npt.NDArray[Any]]
GROUP = 32
# Where AWQ puts the eight numbers of a word.
_AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


def quantise(folder: Path, format: str) -> Path:
    """Quantise every linear layer of a saved model in place."""
    tensors_of, settings = FORMATS[format]
    for shard in folder.glob("*.safetensors"):
        tensors: Tensors = {}
        for name, values in load_file(shard).items():
            stem = name.removesuffix(".weight")
            linear = stem.endswith("_proj")
            tensors |= tensors_of(stem, values) if linear else {name: values}
        save_file(tensors, shard, {"format": "pt"})
    _rename_in_index(folder)
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = settings
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def _rename_in_index(folder: Path) -> None:
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        shards = sorted(folder.glob("*.safetensors"))
        names = {name: shard.name for shard in shards for name in load_file(shard)}
        index.write_text(json.dumps({"metadata": {}, "weight_map": names}))


def _rounded(values: npt.NDArray[Any], most: int) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Whole numbers up to `most`, and the scale of each row."""
    scales = np.abs(values).max(axis=-1, keepdims=True) / most
    return np.rint(values / scales).astype(np.int32), scales.astype(np.float32)


def _int8(stem: str, values: npt.NDArray[Any]) -> Tensors:
    whole, scales = _rounded(values, 127)
    return {f"{stem}.weight": whole.astype(np.int8), f"{stem}.weight_scale": scales}


def _int4(values: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Numbers from 1 to 15 around 8 [outputs, inputs], and scales [outputs, groups]."""
    outputs, inputs = values.shape
    whole, scales = _rounded(values.reshape(outputs, -1, GROUP), 7)
    return whole.reshape(outputs, inputs) + 8, scales.reshape(outputs, -1)


def _packed(numbers: npt.NDArray[Any], order: tuple[int, ...] = tuple(range(8))) -> Any:
    """Eight numbers of four bits in each 32-bit word, along the last axis."""
    words = numbers.reshape(*numbers.shape[:-1], -1, 8)[..., list(order)].astype(np.uint32)
    shifts = np.arange(0, 32, 4, dtype=np.uint32)
    return np.bitwise_or.reduce(words << shifts, axis=-1).astype(np.uint32).view(np.int32)


def _pack_quantized(stem: str, values: npt.NDArray[Any]) -> Tensors:
    numbers, scales = _int4(values)
    shape = np.array(values.shape, np.int64)
    parts = {"weight_packed": _packed(numbers), "weight_scale": scales, "weight_shape": shape}
    return {f"{stem}.{name}": part for name, part in parts.items()}


def _gptq(stem: str, values: npt.NDArray[Any]) -> Tensors:
    numbers, scales = _int4(values)
    groups = scales.shape[1]
    parts = {
        "qweight": np.ascontiguousarray(_packed(numbers).T),
        "qzeros": _packed(np.full((groups, len(values)), 7)),  # the format stores one less
        "scales": np.ascontiguousarray(scales.T),
        "g_idx": np.arange(values.shape[1], dtype=np.int32) // GROUP,
    }
    return {f"{stem}.{name}": part for name, part in parts.items()}


def _awq(stem: str, values: npt.NDArray[Any]) -> Tensors:
    numbers, scales = _int4(values)
    parts = {
        "qweight": _packed(np.ascontiguousarray(numbers.T), _AWQ_ORDER),
        "qzeros": _packed(np.full((scales.shape[1], len(values)), 8), _AWQ_ORDER),
        "scales": np.ascontiguousarray(scales.T),
    }
    return {f"{stem}.{name}": part for name, part in parts.items()}


def _compressed_tensors(format: str, weights: Any, activations: Any) -> dict[str, Any]:
    group = {"targets": ["Linear"], "weights": weights, "input_activations": activations}
    return {
        "quant_method": "compressed-tensors",
        "format": format,
        "quantization_status": "compressed",
        "ignore": ["lm_head"],
        "config_groups": {"group_0": group},
    }


_INT8 = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel", "dynamic": False}
_INT4 = {**_INT8, "num_bits": 4, "strategy": "group", "group_size": GROUP}

FORMATS: Mapping[str, tuple[Callable[[str, npt.NDArray[Any]], Tensors], dict[str, Any]]] = {
    "int8": (
        _int8,
        _compressed_tensors(
            "int-quantized", _INT8, {**_INT8, "strategy": "token", "dynamic": True}
        ),
    ),
    "int4": (_pack_quantized, _compressed_tensors("pack-quantized", _INT4, None)),
    "gptq": (
        _gptq,
        {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "desc_act": False, "sym": True},
    ),
    "awq": (
        _awq,
        {
            "quant_method": "awq",
            "bits": 4,
            "group_size": GROUP,
            "zero_point": True,
            "version": "gemm",
        },
    ),
}
