"""An independent implementation to compare with: the whole model in memory, float64, no blocks.

It shares no code with `vllm_kprune.sparsify`. Inputs are caught with hooks on a model that
transformers has loaded as usual, and kept whole.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

Matrix = npt.NDArray[np.float64]


def prune_whole_model(model: Any, ids: torch.Tensor, method: str, share: float) -> dict[str, Any]:
    """Prune a loaded model in place; gives the pruned matrices by their name in checkpoints."""
    language = getattr(model.model, "language_model", model.model)
    prune = {"wanda": _wanda, "sparsegpt": _sparsegpt}[method]
    found = {}
    for number, layer in enumerate(language.layers):
        for name, weight, inputs in _caught(model, layer, ids):
            pruned = prune(weight.double().numpy(), inputs.double().numpy(), share)
            found[f"layers.{number}.{name}.weight"] = pruned
            weight.copy_(torch.from_numpy(pruned))
    return found


def _is_pruned(name: str, module: torch.nn.Module) -> bool:
    # A single row that weighs the shared expert, as a router does.
    return isinstance(module, torch.nn.Linear) and not name.endswith("shared_expert_gate")


def _caught(
    model: Any, layer: Any, ids: torch.Tensor
) -> Iterator[tuple[str, torch.Tensor, torch.Tensor]]:
    """(name, weight, all inputs) of each matrix of a layer, for the model as it is now."""
    inputs: dict[str, list[Any]] = {}

    def keep(name: str) -> Callable[..., None]:
        return lambda module, args: inputs.setdefault(name, []).append(args)

    linear = {n: m for n, m in layer.named_modules() if _is_pruned(n, m)}
    experts = getattr(layer.mlp, "experts", None)
    watched = {**linear, **({"mlp.experts": experts} if experts is not None else {})}
    hooks = [module.register_forward_pre_hook(keep(name)) for name, module in watched.items()]
    with torch.no_grad():
        for sample in ids:
            model(sample[None])
    for hook in hooks:
        hook.remove()
    for name, module in linear.items():
        caught = torch.cat([args[0].reshape(-1, module.in_features) for args in inputs[name]])
        yield name, module.weight.data, caught
    if experts is not None:
        yield from _experts(experts, inputs["mlp.experts"])


def _experts(module: Any, calls: list[Any]) -> Iterator[tuple[str, torch.Tensor, torch.Tensor]]:
    for number in range(len(module.down_proj)):
        tokens = torch.cat([hidden[(chosen == number).any(1)] for hidden, chosen, _ in calls])
        gate, up = module.gate_up_proj.data[number].chunk(2)
        inner = module.act_fn(tokens @ gate.T) * (tokens @ up.T)
        name = f"mlp.experts.{number}."
        yield name + "gate_proj", gate, tokens
        yield name + "up_proj", up, tokens
        yield name + "down_proj", module.down_proj.data[number], inner


def _wanda(weight: Matrix, inputs: Matrix, share: float) -> Matrix:
    scores = np.abs(weight) * np.sqrt((inputs**2).sum(0))
    result = weight.copy()
    for row, score in zip(result, scores, strict=True):
        row[np.argsort(score)[: int(len(row) * share)]] = 0
    return result


def _sparsegpt(weight: Matrix, inputs: Matrix, share: float) -> Matrix:
    """Optimal brain surgeon, column by column: the inverse is made anew for the columns left."""
    rows, width = weight.shape
    hessian = 2 * inputs.T @ inputs
    hessian += 0.01 * np.diag(hessian).mean() * np.eye(width)
    result = weight.copy()
    mask = np.zeros(weight.shape, bool)
    for column in range(width):
        left = slice(column, width)
        inverse = np.linalg.inv(hessian[left, left])
        if column % 128 == 0:
            ends = range(column, min(column + 128, width))
            scales = [np.linalg.inv(hessian[c:, c:])[0, 0] for c in ends]
            scores = result[:, ends.start : ends.stop] ** 2 / np.array(scales)
            chosen = np.argsort(scores, axis=None)[: int(rows * len(ends) * share)]
            mask[:, ends.start : ends.stop].flat[chosen] = True
        error = np.where(mask[:, column], result[:, column], 0) / inverse[0, 0]
        result[:, left] -= np.outer(error, inverse[0])
        result[mask[:, column], column] = 0
    return result
