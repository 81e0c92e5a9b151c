"""Prune one decoder layer: watch its inputs, prune its matrices, store them.

As in the authors' code of Wanda and SparseGPT, the statistics of all matrices of a layer come from
the layer before any of them is pruned. The next layer gets what the pruned layer gives.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from vllm_kprune.errors import KPruneError
from vllm_kprune.sparsify.activations import Activations
from vllm_kprune.sparsify.methods import METHODS, MatrixPruner, prune_by_magnitude
from vllm_kprune.sparsify.network import Network, matrices_of
from vllm_kprune.sparsify.pattern import SparsityPattern
from vllm_kprune.sparsify.statistics import InputStatistic

__all__ = ["LayerPruner"]

# Told after each sample.
SampleDone = Callable[[], None]
# (name within the layer, pruned float32 weights, notes for the record).
PrunedMatrix = tuple[str, torch.Tensor, dict[str, Any]]


@dataclass(frozen=True)
class LayerPruner:
    """Prunes the loaded layers of a network with one method."""

    network: Network
    method: str
    pattern: SparsityPattern

    def prune(
        self, layer: int, activations: Activations | None, done: SampleDone
    ) -> Iterator[PrunedMatrix]:
        """Prune the matrices of a layer in place, one after another."""
        module = self.network.skeleton(layer)
        watched = _Watched({}, {})
        if activations is not None:
            with _watching(module, self._statistic, watched):
                for sample in range(len(activations)):
                    self.network.run(layer, activations[sample])
                    done()
            _refuse_infinite(watched, layer)
        yield from self._pruned(module, watched)

    def forward(self, layer: int, activations: Activations, done: SampleDone) -> None:
        """Replace all samples by what the layer gives for them."""
        for sample in range(len(activations)):
            hidden = self.network.run(layer, activations[sample])
            if not bool(torch.isfinite(hidden).all()):
                raise KPruneError(
                    f"layer {layer} gives NaN or infinity for sample {sample}: the checkpoint may "
                    "be damaged, or use another text or --seed"
                )
            activations[sample] = hidden
            done()

    def _statistic(self, width: int) -> InputStatistic:
        make = METHODS[self.method].statistic
        assert make is not None
        return make(width, self.network.device)

    def _pruned(self, module: nn.Module, watched: "_Watched") -> Iterator[PrunedMatrix]:
        groups: dict[str, dict[str, nn.Linear]] = {}
        for name, matrix in matrices_of(module).items():
            groups.setdefault(watched.leaders.get(name, name), {})[name] = matrix
        for leader, matrices in groups.items():
            # Given up here, because a Hessian is used up by its factor.
            prune, notes = self._prepare(watched.statistics.pop(leader, None))
            for name, matrix in matrices.items():
                mask = prune(matrix.weight.data, self.pattern)
                yield name, matrix.weight.data, {"pruned": int(mask.sum()), **notes}

    def _prepare(self, statistic: InputStatistic | None) -> tuple[MatrixPruner, dict[str, Any]]:
        # An expert that no token was sent to: nothing is known about its inputs.
        if statistic is None or not bool(statistic.diagonal.any()):
            unseen = {} if METHODS[self.method].statistic is None else {"no_inputs": True}
            return prune_by_magnitude, unseen
        return METHODS[self.method].pruner(statistic)


@dataclass(frozen=True)
class _Watched:
    """Statistics by matrix, and for every matrix the one whose inputs it shares."""

    statistics: dict[str, InputStatistic]
    leaders: dict[str, str]


@contextmanager
def _watching(
    module: nn.Module, make: Callable[[int], InputStatistic], watched: _Watched
) -> Iterator[None]:
    """Add up the inputs of all matrices while the block runs the layer."""
    last: tuple[str, torch.Tensor] | None = None

    def hook(name: str, matrix: nn.Linear, inputs: torch.Tensor) -> None:
        nonlocal last
        # Queries, keys and values get the very same tensor, one after another.
        if name not in watched.leaders:
            shared = last is not None and last[1] is inputs
            watched.leaders[name] = last[0] if last is not None and shared else name
        leader = watched.leaders[name]
        if leader != name:
            return
        last = (name, inputs)
        if name not in watched.statistics:
            watched.statistics[name] = make(matrix.in_features)
        watched.statistics[name].add(inputs.reshape(-1, matrix.in_features))

    def hook_of(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        return lambda matrix, args: hook(name, matrix, args[0])  # type: ignore[arg-type]

    handles = [m.register_forward_pre_hook(hook_of(n)) for n, m in matrices_of(module).items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _refuse_infinite(watched: _Watched, layer: int) -> None:
    for name, statistic in watched.statistics.items():
        if not bool(torch.isfinite(statistic.diagonal).all()):
            raise KPruneError(
                f"layer {layer}, {name}: its inputs have NaN or infinity, so nothing can be "
                "compared; the checkpoint may be damaged, or use another text or --seed"
            )
