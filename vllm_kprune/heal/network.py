"""A whole text model in float32, for training, from the tensors of a checkpoint.

The network is transformers' own class; tensors get in and out under the names that the files have,
so a healed checkpoint has the same files as before. A teacher has only the rows of the vocabulary
that the student kept: its logits then have the student's ids, and its softmax is over the kept
tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from vllm_kprune.checkpoint.shards import StoredTensor
from vllm_kprune.errors import KPruneError
from vllm_kprune.heal.loss import Head
from vllm_kprune.sparsify.body import ModelBody, checked_dtype, read_tensor
from vllm_kprune.sparsify.experts import separate_experts
from vllm_kprune.sparsify.network import empty_model

__all__ = ["TextModel", "load_text_model", "parameter_count"]

_EMBEDDING = "embed_tokens.weight"


@dataclass(frozen=True)
class TextModel:
    """A text model; `head` is its LM head's weights, or None where the embedding is the head."""

    body: ModelBody
    module: Any
    head_weight: nn.Parameter | None
    device: torch.device

    @property
    def head(self) -> Head:
        """The LM head, with what the family does to the logits."""
        config = self.module.config
        weight = self.head_weight
        return Head(
            self.module.embed_tokens.weight if weight is None else weight,
            float(getattr(config, "logit_scale", 1.0)),
            getattr(config, "final_logit_softcapping", None),
        )

    def hidden(self, ids: torch.Tensor) -> torch.Tensor:
        """The hidden states [tokens, hidden] that enter the head, for one text's ids [tokens]."""
        output = self.module(input_ids=ids[None].to(self.device), use_cache=False)
        result: torch.Tensor = output.last_hidden_state[0]
        return result

    def stored(self, name: str) -> tuple[tuple[str, StoredTensor], ...]:
        """File and place of a parameter's tensor; a tied head may be stored a second time."""
        places, family = self.body.places, self.body.base.family
        if name == "head":
            return (places[family.head],)
        found = (places[self.body.prefix + name],)
        twice = name == _EMBEDDING and self.head_weight is None and family.head in places
        return (*found, places[family.head]) if twice else found

    def parameters(self) -> dict[str, nn.Parameter]:
        """Name -> parameter; the head's is "head"."""
        named: dict[str, nn.Parameter] = dict(self.module.named_parameters())
        return named if self.head_weight is None else {**named, "head": self.head_weight}


def load_text_model(
    body: ModelBody, device: torch.device, rows: Sequence[int] | None = None
) -> TextModel:
    """Load the text model of `body`, with only these rows of embedding and head, if any are given.

    Nothing requires a gradient yet. Raises `KPruneError` if a tensor is missing or unlike.
    """
    module = _network(body)
    wanted = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    state = {}
    for name, shape in wanted.items():
        values = _read(body, body.prefix + name, shape)
        state[name] = _rows(values, rows if name == _EMBEDDING else None, device)
    module.load_state_dict(state, assign=True)
    # Buffers, such as rotary frequencies; weights are there already.
    module.to(device).requires_grad_(False).eval()
    return TextModel(body, module, _own_head(body, module, wanted[_EMBEDDING], rows, device), device)


def parameter_count(body: ModelBody) -> dict[str, int]:
    """Parameter -> number of weights, without reading any."""
    counts = {name: value.numel() for name, value in _network(body).state_dict().items()}
    return counts


def _network(body: ModelBody) -> Any:
    module = empty_model(body.base.folder, "heal")
    for layer in module.layers:
        separate_experts(layer)
    # Its row would get no gradient as an input.
    module.embed_tokens.padding_idx = None
    return module


def _own_head(
    body: ModelBody,
    module: Any,
    shape: tuple[int, ...],
    rows: Sequence[int] | None,
    device: torch.device,
) -> nn.Parameter | None:
    """The head's weights; None if it is tied to the embedding."""
    name, tied = body.base.family.head, _is_tied(body)
    if tied or name not in body.places:
        return None
    return nn.Parameter(_rows(_read(body, name, shape), rows, device), requires_grad=False)


def _is_tied(body: ModelBody) -> bool:
    family, config = body.base.family, body.base.config
    for part in (config, family.text(config)):
        if isinstance(tied := part.get("tie_word_embeddings"), bool):
            return tied
    return family.ties_by_default


def _read(body: ModelBody, name: str, shape: tuple[int, ...]) -> torch.Tensor:
    if name not in body.places:
        raise KPruneError(
            f"{body.base.folder} has no tensor {name}, which {body.base.family.architecture} needs"
        )
    shard, info = body.places[name]
    checked_dtype(info)
    if info.shape != shape:
        raise KPruneError(
            f"{info.name} has the shape {list(info.shape)}, expected {list(shape)} from config.json"
        )
    return read_tensor(body.base.folder / shard, info)


def _rows(
    values: torch.Tensor, rows: Sequence[int] | None, device: torch.device
) -> torch.Tensor:
    kept = values if rows is None else values[torch.tensor(rows)]
    return kept.to(device, torch.float32)
