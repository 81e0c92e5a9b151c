"""The hidden states of all samples between two layers, in memory or in a file.

There is one buffer: what a layer gives for a sample overwrites what it got. So a file that a killed
run leaves is worthless, and the next run calculates the hidden states again.
"""

from pathlib import Path

import numpy as np
import torch

__all__ = ["Activations"]


class Activations:
    """Hidden states [samples, length, hidden] in float32; mapped from `path` if one is given."""

    def __init__(self, samples: int, length: int, hidden: int, path: Path | None) -> None:
        shape = (samples, length, hidden)
        if path is None:
            self._values = torch.empty(shape)
            return
        self._values = torch.from_numpy(np.memmap(path, np.float32, mode="w+", shape=shape))

    @staticmethod
    def bytes(samples: int, length: int, hidden: int) -> int:
        """Bytes of the buffer."""
        return samples * length * hidden * 4

    def __len__(self) -> int:
        return len(self._values)

    def __getitem__(self, sample: int) -> torch.Tensor:
        return self._values[sample]

    def __setitem__(self, sample: int, hidden: torch.Tensor) -> None:
        self._values[sample] = hidden
