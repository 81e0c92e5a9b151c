"""Where to calculate."""

import torch

from vllm_kprune.errors import KPruneError

__all__ = ["device_name", "pick_device"]


def pick_device(wanted: str) -> torch.device:
    """The device for `--device auto`, `cpu` or `cuda`; `KPruneError` if there is no GPU."""
    there = torch.cuda.is_available()
    if wanted == "cuda" and not there:
        raise KPruneError("--device cuda: PyTorch finds no GPU; use --device cpu")
    return torch.device("cuda" if there and wanted != "cpu" else "cpu")


def device_name(device: torch.device) -> str:
    """The name of a GPU, or `cpu`."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
