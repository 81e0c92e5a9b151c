"""Memory of the guard on the device: it outlives sleep mode, and is written without waiting."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from vllm_kprune.serving.compat.engine import pins_memory

__all__ = ["lasting_zeros", "to_device"]


def lasting_zeros(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Zeros that sleep mode leaves alone.

    vLLM makes logits processors while memory comes from its pool for weights, which a sleep of
    level 2 throws away. PyTorch takes memory from a pool for the thread that asked for it only, so
    another thread gets memory that stays.
    """
    if device.type == "cpu":
        return torch.zeros(shape, dtype=dtype)
    stream = torch.accelerator.current_stream(device)

    def allocate() -> torch.Tensor:
        # The stream that will use it: otherwise the allocator could give it to another one early.
        with stream:
            return torch.empty(shape, dtype=dtype, device=device)

    with ThreadPoolExecutor(1) as other_thread:
        return other_thread.submit(allocate).result().zero_()


def to_device(values: np.ndarray, device: torch.device) -> torch.Tensor:
    """Copy an array to the device, asynchronously where the host has pinned memory."""
    tensor = torch.from_numpy(values)
    if device.type == "cpu":
        return tensor
    # From pageable memory, CUDA would wait for the copy. The pinned block is not reused before the
    # copy is done; PyTorch sees to that.
    return (tensor.pin_memory() if pins_memory() else tensor).to(device, non_blocking=True)
