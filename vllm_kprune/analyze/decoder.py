"""A transformers model in memory: its decoder layers, and how it is evaluated."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn

from vllm_kprune.errors import KPruneError

__all__ = ["bare_model", "decoder_layers", "evaluating"]


def bare_model(model: Any) -> Any:
    """The model itself, without what peft wraps around it; adapters stay in effect."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def decoder_layers(model: Any) -> Sequence[nn.Module]:
    """The decoder layers of the text model, in order.

    Raises `KPruneError` for a model without them, and for fused experts: transformers keeps these
    in tensors with three axes, where nothing can be watched or named by expert.
    """
    layers = getattr(bare_model(model).get_decoder(), "layers", None)
    if not isinstance(layers, nn.ModuleList):
        raise KPruneError(f"{type(model).__name__} has no decoder layers that kprune can find")
    for layer in layers:
        for name, parameter in layer.named_parameters():
            if parameter.ndim == 3:
                raise KPruneError(
                    f"{type(model).__name__} has fused experts in memory ({name}); give the "
                    "model's folder instead"
                )
    return list(layers)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Without dropout while the block runs."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
