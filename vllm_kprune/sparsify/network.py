"""A model's network by transformers' own classes, with one decoder layer in memory at a time.

The network is built without memory for its weights. Embedding, masks and positions are left to
transformers: each layer is replaced by a recorder, the network is run once, and what it passes to
each layer is kept. So every family works whose text model has `embed_tokens` and `layers`, and
nothing of a family is repeated here. Everything is calculated in float32.
"""

import ctypes
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vllm_kprune.checkpoint.shards import StoredTensor
from vllm_kprune.errors import KPruneError
from vllm_kprune.sparsify.body import ModelBody, checked_dtype, read_tensor
from vllm_kprune.sparsify.experts import separate_experts

__all__ = ["Network", "build_network", "empty_model", "matrices_of"]


# The router of a layer's experts, and the one row that weighs Qwen3-Next's shared expert.
_GATES = ("gate", "shared_expert_gate")


class _Recorder(nn.Module):
    """Keeps the arguments that a network gives to one of its layers."""

    def forward(self, hidden_states: torch.Tensor, **arguments: Any) -> torch.Tensor:
        self.arguments = arguments
        return hidden_states


class Network:
    """The text model of `body`, with its layers on the meta device."""

    def __init__(self, body: ModelBody, model: Any, device: torch.device) -> None:
        self.body, self.device = body, device
        self._model = model
        self._layers: list[nn.Module] = list(model.layers)
        self._arguments: list[dict[str, Any]] = []
        for layer in self._layers:
            separate_experts(layer)
            layer.eval()
        self._recorders = [_Recorder() for _ in self._layers]
        model.layers = nn.ModuleList(self._recorders)
        model.norm = nn.Identity()

    @property
    def hidden_size(self) -> int:
        """Width of the activations between layers."""
        return self.body.embedding.shape[1]

    @property
    def config(self) -> Any:
        """The configuration of the text model, from transformers."""
        return self._model.config

    @property
    def most_positions(self) -> int | None:
        """The longest text that the model takes, if its configuration says so."""
        most = getattr(self._model.config, "max_position_embeddings", None)
        return most if isinstance(most, int) else None

    def skeleton(self, layer: int) -> nn.Module:
        """A layer on the meta device, which has names and shapes but no weights."""
        return self._layers[layer]

    def stored(self, layer: int) -> dict[str, tuple[str, StoredTensor]]:
        """Parameter of a layer -> file and place of its tensor, which has the expected shape."""
        prefix, found = self.body.layer_prefix(layer), {}
        for name, parameter in self.skeleton(layer).state_dict().items():
            if prefix + name not in self.body.places:
                raise KPruneError(
                    f"{self.body.base.folder} has no tensor {prefix}{name}, which "
                    f"{self.body.base.family.architecture} needs"
                )
            shard, info = self.body.places[prefix + name]
            checked_dtype(info)
            if info.shape != tuple(parameter.shape):
                raise KPruneError(
                    f"{info.name} has the shape {list(info.shape)}, expected "
                    f"{list(parameter.shape)} from config.json"
                )
            found[name] = (shard, info)
        return found

    def load(self, layer: int, folder: Path) -> nn.Module:
        """A layer with the weights that the files in `folder` have, in float32."""
        module = self.skeleton(layer)
        state = {
            name: read_tensor(folder / shard, info).to(self.device, torch.float32)
            for name, (shard, info) in self.stored(layer).items()
        }
        module.load_state_dict(state, assign=True)
        return module.requires_grad_(False)

    def unload(self, layer: int) -> None:
        """Free a layer's weights."""
        self.skeleton(layer).to("meta")
        _return_freed_memory()

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        """The hidden states [tokens, hidden] that enter the first layer."""
        used, places = torch.unique(ids, return_inverse=True)
        embedding = self._model.embed_tokens
        # Only the rows in use, since the whole embedding may be larger than several layers.
        rows = self.body.embedding[used].float()
        embedding.weight = nn.Parameter(rows, requires_grad=False)
        embedding.padding_idx = None
        hidden: torch.Tensor = embedding(places)
        # HyperCLOVA X scales outside of the module, which is passed by here.
        return hidden * float(getattr(self._model.config, "embedding_multiplier", 1.0))

    def prepare(self, length: int) -> None:
        """Record what the layers are given besides hidden states, for texts of `length` tokens."""
        with torch.no_grad():
            self._model(inputs_embeds=torch.zeros(1, length, self.hidden_size), use_cache=False)
        self._arguments = [
            {name: _on(value, self.device) for name, value in recorder.arguments.items()}
            for recorder in self._recorders
        ]

    def run(self, layer: int, hidden: torch.Tensor) -> torch.Tensor:
        """Hidden states [tokens, hidden] after a loaded layer, on the CPU."""
        with torch.no_grad():
            output = self.skeleton(layer)(hidden[None].to(self.device), **self._arguments[layer])
        result: torch.Tensor = output[0] if isinstance(output, tuple) else output
        return result[0].cpu()


def matrices_of(layer: nn.Module) -> dict[str, nn.Linear]:
    """The matrices of a decoder layer that are pruned: all but those that weigh its experts."""
    return {
        name: module
        for name, module in layer.named_modules()
        if isinstance(module, nn.Linear) and name.split(".")[-1] not in _GATES
    }


def build_network(body: ModelBody, device: torch.device) -> Network:
    """The network of a model, without its weights."""
    model = empty_model(body.base.folder, "sparsify", head=False)
    if len(model.layers) != body.num_layers:
        raise KPruneError(
            f"{body.base.folder} has tensors of {body.num_layers} layers, but config.json says "
            f"{len(model.layers)}"
        )
    return Network(body, model, device)


def empty_model(folder: Path, extra: str, *, head: bool) -> Any:
    """The text model of a folder by transformers' own class, without memory for its weights.

    With `head` it is a causal language model, whose `model` is the text model. `extra` names the
    part of kprune that needs it, should transformers not be installed.
    """
    try:
        from accelerate import init_empty_weights
        from transformers import AutoConfig, AutoModel, AutoModelForCausalLM
    except ModuleNotFoundError as error:
        raise KPruneError(
            f"kprune {extra} needs {error.name}; pip install 'vllm-kprune[{extra}]'"
        ) from None
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False).get_text_config()
        # Buffers are made, because they hold rotary frequencies and the like, not weights.
        with init_empty_weights(include_buffers=False):
            kind = AutoModelForCausalLM if head else AutoModel
            return kind.from_config(config, dtype=torch.float32).eval()
    # What a configuration from outside can raise in transformers' classes.
    except (AttributeError, KeyError, OSError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise KPruneError(f"transformers cannot build {folder}: {reason}") from None


def _return_freed_memory() -> None:
    """Give freed memory back to the system.

    glibc's allocator keeps it, and hardly uses it again for tensors, which have to be aligned: a
    run would end with as much memory as all layers have together.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _on(value: Any, device: torch.device) -> Any:
    """A value with its tensors on a device, also those in tuples."""
    if isinstance(value, tuple):
        return tuple(_on(item, device) for item in value)
    return value.to(device) if isinstance(value, torch.Tensor) else value
