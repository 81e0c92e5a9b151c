"""What a run needs of memory and disk, estimated from shapes before the long part.

Memory is one decoder layer in float32, the method's statistics, what one sample's pass through the
layer takes, and the activations of all samples, unless these go to a file.
"""

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from vllm_kprune.errors import KPruneError
from vllm_kprune.sparsify.activations import Activations
from vllm_kprune.sparsify.network import Network, matrices_of
from vllm_kprune.sparsify.statistics import ColumnSquares, Hessian, MakeStatistic

__all__ = ["Budget", "available_memory", "plan_budget"]

_ROOM_FOR_OTHER_FILES = 64 << 20
_FLOAT = 4
# Attention masks of sliding windows are [length, length]: a byte, and four more as numbers.
_MASK_BYTES = 5
# Matrices that take the inputs of another one, whose statistic they share.
_SHARING = ("k_proj", "v_proj", "up_proj")
# What needs less memory, by statistic.
_SAVING: Mapping[MakeStatistic | None, str] = {
    Hessian: "give more, or try a lower --length or --method wanda",
    ColumnSquares: "give more, or lower --length",
    None: "give more",
}


@dataclass(frozen=True)
class Budget:
    """Bytes of memory for one layer and for all activations, and whether these go to a file."""

    layer: int
    activations: int
    on_disk: bool

    def check_disk(self, folder: Path, weights: int) -> None:
        """Raise `KPruneError` if the disk of `folder` lacks room for the weights still to copy."""
        needed = weights + _ROOM_FOR_OTHER_FILES + (self.activations if self.on_disk else 0)
        free = shutil.disk_usage(folder).free
        if free >= needed:
            return
        lower = ", lower --samples or --length, or raise --memory" if self.on_disk else ""
        raise KPruneError(
            f"the run needs {_size(needed)} of disk, but {_size(free)} are free; make room, name a "
            f"folder on another disk{lower}"
        )


def plan_budget(
    network: Network, statistic: MakeStatistic | None, shape: tuple[int, int], memory: int
) -> Budget:
    """The budget for samples of `shape` (samples, length) with so many bytes of memory.

    A method without a statistic keeps no activations. Raises `KPruneError` if a layer does not fit.
    """
    samples, length = shape
    layers = [network.skeleton(layer) for layer in range(network.body.num_layers)]
    layer = max(map(_parameter_bytes, layers))
    statistics = max(_statistics_bytes(one, statistic) for one in layers)
    passing = _passing_bytes(layers, network.hidden_size, length) if statistic else 0
    activations = Activations.bytes(samples, length, network.hidden_size) if statistic else 0
    fixed = layer + statistics + passing
    if network.device.type != "cpu":
        _check_device(fixed, network.device)
        fixed = layer  # the rest is on the device
    if fixed > memory:
        raise KPruneError(
            f"one layer needs {_size(fixed)} of memory, --memory is {_size(memory)}; "
            f"{_SAVING[statistic]}"
        )
    return Budget(fixed, activations, fixed + activations > memory)


def available_memory() -> int:
    """Bytes of memory that programs can still take, by the kernel's estimate if there is one."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        line = next(line for line in lines if line.startswith("MemAvailable:"))
        return int(line.split()[1]) << 10
    except (OSError, StopIteration, ValueError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def _check_device(needed: int, device: torch.device) -> None:
    free, _ = torch.cuda.mem_get_info(device)
    if needed > free:
        raise KPruneError(
            f"one layer needs {_size(needed)} of the GPU's memory, {_size(free)} are free; lower "
            "--length, or use --device cpu"
        )


def _parameter_bytes(layer: torch.nn.Module) -> int:
    return _FLOAT * sum(parameter.numel() for parameter in layer.parameters())


def _statistics_bytes(layer: torch.nn.Module, statistic: MakeStatistic | None) -> int:
    """Statistics of all matrices, and what pruning one of them takes besides."""
    matrices = matrices_of(layer)
    # Scores, mask and a copy: less than four times the largest matrix.
    pruning = 4 * _FLOAT * max((m.weight.numel() for m in matrices.values()), default=0)
    if statistic is not Hessian:
        return pruning
    widths = [m.in_features for name, m in matrices.items() if not name.endswith(_SHARING)]
    # The Hessian, its factor, the inverse and its factor are there at once for one matrix.
    return pruning + _FLOAT * (sum(width**2 for width in widths) + 3 * max(widths) ** 2)


def _passing_bytes(layers: list[torch.nn.Module], hidden: int, length: int) -> int:
    widths = [m.out_features + m.in_features for one in layers for m in matrices_of(one).values()]
    per_token = 8 * hidden + 4 * max(widths)
    return length * per_token * _FLOAT + length * length * _MASK_BYTES


def _size(count: int) -> str:
    """In GB as `--memory` takes it, or in MB what would be almost zero.

    >>> _size(1_234_000_000), _size(56_700_000)
    ('1.23 GB', '56.70 MB')
    """
    return f"{count / 1e9:,.2f} GB" if count >= 1e8 else f"{count / 1e6:.2f} MB"
