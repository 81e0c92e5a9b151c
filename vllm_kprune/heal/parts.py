"""What is trained: layers, vocabulary, every weight, or low-rank adapters (LoRA, Hu et al. 2022).

Adapters are peft's. On a sparsified matrix the product of the two low-rank matrices is masked where
the matrix is zero, in training as in the merged weight: so what is trained is what is stored, and
merging cannot fill the zeros (SparsePEFT in Muñoz et al. 2024 does the same).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from vllm_kprune.errors import KPruneError
from vllm_kprune.heal.masks import ZeroMasks
from vllm_kprune.heal.network import EMBEDDING, HEAD, TextModel
from vllm_kprune.heal.options import HealOptions, What
from vllm_kprune.sparsify.network import matrices_of

__all__ = ["Trained", "check_adapters", "choose_trained"]

_ADAPTER = "default"
_VOCABULARY = (EMBEDDING, HEAD)


@dataclass(frozen=True)
class Trained:
    """The parameters that are trained, and how to get at the weights that they make.

    `changed` gives (parameter of the network, weights in float32) of everything that training
    changes in the checkpoint.
    """

    parameters: Mapping[str, nn.Parameter]
    changed: Callable[[], dict[str, torch.Tensor]]


def choose_trained(model: TextModel, masks: ZeroMasks, options: HealOptions) -> Trained:
    """Switch on the gradients of what `--what` names."""
    return _CHOICES[options.what](model, masks, options)


def check_adapters() -> None:
    """Raise `KPruneError` if peft is not installed."""
    try:
        import peft  # noqa: F401
    except ModuleNotFoundError as error:
        raise KPruneError(
            f"--what lora needs {error.name}; pip install 'vllm-kprune[heal]', or use --what all"
        ) from None


def _everything(model: TextModel, masks: ZeroMasks, options: HealOptions) -> Trained:
    return _switched_on(model.parameters())


def _vocabulary(model: TextModel, masks: ZeroMasks, options: HealOptions) -> Trained:
    return _switched_on({n: p for n, p in model.parameters().items() if n in _VOCABULARY})


def _layers(model: TextModel, masks: ZeroMasks, options: HealOptions) -> Trained:
    return _switched_on({n: p for n, p in model.parameters().items() if n not in _VOCABULARY})


def _switched_on(parameters: Mapping[str, nn.Parameter]) -> Trained:
    for parameter in parameters.values():
        parameter.requires_grad_(True)
    return Trained(parameters, lambda: {name: one.data for name, one in parameters.items()})


def _adapters(model: TextModel, masks: ZeroMasks, options: HealOptions) -> Trained:
    layers = _inject(model.module, options)
    for name, layer in layers.items():
        layer.zeros = masks.masks.get(f"{name}.weight")
    parameters = {n: p for n, p in model.module.named_parameters() if ".lora_" in n}

    def merged() -> dict[str, torch.Tensor]:
        with torch.no_grad():
            return {f"{name}.weight": layer.merged_weight() for name, layer in layers.items()}

    return Trained(parameters, merged)


def _inject(module: Any, options: HealOptions) -> dict[str, Any]:
    """Put an adapter on every matrix of the decoder layers; gives them by the matrix's name."""
    check_adapters()
    from peft import LoraConfig, inject_adapter_in_model
    from peft.tuners.lora import Linear

    class MaskedLinear(Linear):  # type: ignore[misc]
        """peft's adapter on a matrix, some weights of which stay zero."""

        zeros: torch.Tensor | None = None

        def get_delta_weight(self, adapter: str) -> torch.Tensor:
            """B A times the scale [outputs, inputs], zero where the matrix is held at zero."""
            delta: torch.Tensor = super().get_delta_weight(adapter)
            return delta if self.zeros is None else delta.masked_fill(self.zeros, 0.0)

        def merged_weight(self) -> torch.Tensor:
            """The weight that the checkpoint gets."""
            weight: torch.Tensor = self.get_base_layer().weight
            return weight + self.get_delta_weight(_ADAPTER)

        def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
            if self.zeros is None:
                result: torch.Tensor = super().forward(x, *args, **kwargs)
                return result
            return functional.linear(x, self.merged_weight(), self.get_base_layer().bias)

    # Into the layers, not the model: for a model of transformers with experts, peft would rewrite
    # the names for the fused tensors, which are separate here.
    names = [
        f"{number}.{name}"
        for number, layer in enumerate(module.layers)
        for name in matrices_of(layer)
    ]
    config = LoraConfig(r=options.rank, lora_alpha=2 * options.rank, target_modules=names)
    config._register_custom_module({nn.Linear: MaskedLinear})
    torch.manual_seed(options.seed)
    inject_adapter_in_model(config, module.layers, adapter_name=_ADAPTER)
    return {f"layers.{name}": module.layers.get_submodule(name) for name in names}


_CHOICES: Mapping[What, Callable[[TextModel, ZeroMasks, HealOptions], Trained]] = {
    "all": _everything,
    "embeddings": _vocabulary,
    "layers": _layers,
    "lora": _adapters,
}
