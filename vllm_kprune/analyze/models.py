"""A causal language model loaded from its folder, for measures that need the whole of it."""

from typing import Any

import torch

from vllm_kprune.errors import KPruneError
from vllm_kprune.sparsify.body import ModelBody
from vllm_kprune.sparsify.budget import available_memory
from vllm_kprune.sparsify.device import pick_device

__all__ = ["load_model"]

_GB = 1e9


def load_model(body: ModelBody, device: str = "auto") -> Any:
    """The model of an opened folder in float32, on the device that `pick_device` names.

    Raises `KPruneError` if it does not fit into memory. No code of the folder is run.
    """
    place = pick_device(device)
    _check_memory(body, place)
    try:
        from transformers import AutoModelForCausalLM
    except ModuleNotFoundError as error:
        raise KPruneError(
            f"analysing needs {error.name}; pip install 'vllm-kprune[sparsify]'"
        ) from None
    try:
        model = AutoModelForCausalLM.from_pretrained(
            body.base.folder,
            dtype=torch.float32,
            trust_remote_code=False,
            use_safetensors=True,
            local_files_only=True,
        )
    # What a configuration from outside can raise in transformers' classes.
    except (AttributeError, KeyError, OSError, RuntimeError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise KPruneError(f"transformers cannot load {body.base.folder}: {reason}") from None
    return model.to(place).eval().requires_grad_(False)


def _check_memory(body: ModelBody, place: torch.device) -> None:
    needed = 4 * sum(info.parameters for _, info in body.places.values())
    free = available_memory() if place.type == "cpu" else torch.cuda.mem_get_info(place)[0]
    if needed > free:
        raise KPruneError(
            f"{body.base.folder} needs {needed / _GB:.1f} GB in float32, but {free / _GB:.1f} GB "
            f"are free{'' if place.type == 'cpu' else ' on the GPU; try --device cpu'}"
        )
