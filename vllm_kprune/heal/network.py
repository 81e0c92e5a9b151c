"""A whole language model in float32, for training, from the tensors of a checkpoint.

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

__all__ = ["EMBEDDING", "HEAD", "TextModel", "empty_text_model", "load_text_model", "stored_places"]

EMBEDDING = "embed_tokens.weight"
# The name of an LM head of its own among the parameters.
HEAD = "head"


@dataclass(frozen=True)
class TextModel:
    """A language model of transformers; its text model has `embed_tokens` and `layers`."""

    body: ModelBody
    causal: Any
    tied: bool
    device: torch.device

    @property
    def module(self) -> Any:
        """The text model without the LM head."""
        return self.causal.model

    @property
    def head(self) -> Head:
        """The LM head, with what the family does to the logits."""
        config = self.causal.config
        # Cohere's name of the factor, and that of HyperCLOVA X.
        scale = float(getattr(config, "logit_scale", getattr(config, "logits_scaling", 1.0)))
        return Head(
            self.causal.lm_head.weight, scale, getattr(config, "final_logit_softcapping", None)
        )

    def hidden(self, ids: torch.Tensor) -> torch.Tensor:
        """The hidden states [tokens, hidden] that enter the head, for one text's ids [tokens]."""
        output = self.module(input_ids=ids[None].to(self.device), use_cache=False)
        result: torch.Tensor = output.last_hidden_state[0]
        return result

    def parameters(self) -> dict[str, nn.Parameter]:
        """Name -> parameter, named as in the text model; an LM head of its own is `HEAD`."""
        named: dict[str, nn.Parameter] = dict(self.module.named_parameters())
        return named if self.tied else {**named, HEAD: self.causal.lm_head.weight}


def stored_places(body: ModelBody, name: str) -> tuple[tuple[str, StoredTensor], ...]:
    """File and place of a parameter's tensor; a tied head may be stored a second time."""
    places, family = body.places, body.base.family
    if name == HEAD:
        return (places[family.head],)
    found = (places[body.prefix + name],)
    twice = name == EMBEDDING and _is_tied(body) and family.head in places
    return (*found, places[family.head]) if twice else found


def load_text_model(
    body: ModelBody, device: torch.device, rows: Sequence[int] | None = None
) -> TextModel:
    """Load the language model of `body`, with only these rows of embedding and head, if any.

    Nothing requires a gradient yet. Raises `KPruneError` if a tensor is missing or unlike.
    """
    causal, tied = empty_text_model(body)
    module, state = causal.model, {}
    shapes = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    for name, shape in shapes.items():
        values = _read(body, body.prefix + name, shape)
        state[name] = _rows(values, rows if name == EMBEDDING else None, device)
    # On its own, because `load_state_dict` wants all rows.
    embedding = module.embed_tokens.weight = nn.Parameter(state.pop(EMBEDDING))
    module.load_state_dict(state, assign=True, strict=False)
    if not tied:
        values = _read(body, body.base.family.head, shapes[EMBEDDING])
        causal.lm_head.weight = nn.Parameter(_rows(values, rows, device))
    else:
        causal.lm_head.weight = embedding
    # Buffers, such as rotary frequencies; the weights are there already.
    causal.to(device).requires_grad_(False).eval()
    return TextModel(body, causal, tied, device)


def empty_text_model(body: ModelBody) -> tuple[Any, bool]:
    """A model's network without weights, and whether its head is the embedding."""
    causal = empty_model(body.base.folder, "heal", head=True)
    for layer in causal.model.layers:
        separate_experts(layer)
    # The row of a padding token would get no gradient as an input.
    causal.model.embed_tokens.padding_idx = None
    return causal, _is_tied(body)


def _is_tied(body: ModelBody) -> bool:
    family, config = body.base.family, body.base.config
    if family.head not in body.places:
        return True
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


def _rows(values: torch.Tensor, rows: Sequence[int] | None, device: torch.device) -> torch.Tensor:
    kept = values if rows is None else values[torch.tensor(rows)]
    return kept.to(device, torch.float32)
