"""Small LoRA adapters in PEFT's format, as `model.save_pretrained` of PEFT writes them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

RANK = 4
ATTENTION = "model.layers.0.self_attn.q_proj"


def save_adapter(
    folder: Path,
    sizes: Mapping[str, tuple[int, int]],
    tensors: Mapping[str, tuple[int, int]] | None = None,
    **settings: Any,
) -> Path:
    """A random adapter of linear modules, {name: (inputs, outputs)}, with further `tensors`."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    shapes = {
        f"base_model.model.{name}.lora_{part}.weight": shape
        for name, (inputs, outputs) in sizes.items()
        for part, shape in (("A", (RANK, inputs)), ("B", (outputs, RANK)))
    }
    shapes |= {f"base_model.model.{name}": shape for name, shape in (tensors or {}).items()}
    values = {name: random.normal(size=s).astype(np.float32) for name, s in shapes.items()}
    save_file(values, folder / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA",
        "r": RANK,
        "lora_alpha": 8,
        "bias": "none",
        "target_modules": sorted({name.split(".")[-1] for name in sizes}),
        "modules_to_save": None,
        "trainable_token_indices": None,
    }
    (folder / "adapter_config.json").write_text(json.dumps(config | settings), encoding="utf-8")
    return folder
