"""Send prompts through a model's decoder layers and watch what happens in each.

    layers = open_layers(model_or_folder)
    layers.walk(prompts, watcher)

A model in memory sends each prompt through all layers. A folder is run as `kprune sparsify` runs
it: in float32, one layer in memory at a time, all prompts through it, so that large models and
mixtures of experts can be watched too. A watcher adds up what it sees, so it need not know which of
the two it is. Of a folder, prompts pass in groups whose hidden states take at most 1 GB.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from vllm_kprune.analyze.decoder import bare_model, decoder_layers, evaluating
from vllm_kprune.analyze.prompts import LanguagePrompt
from vllm_kprune.errors import KPruneError
from vllm_kprune.progress import Progress, silent
from vllm_kprune.sparsify.body import open_body
from vllm_kprune.sparsify.device import pick_device
from vllm_kprune.sparsify.network import build_network

__all__ = ["FolderLayers", "Layers", "MemoryLayers", "Watcher", "open_layers"]

_MOST_HIDDEN_BYTES = 1 << 30
_NUMBER_BYTES = 4


class Watcher(Protocol):
    """Sees the layers of a model while prompts pass through them."""

    def attach(self, layer: int, module: nn.Module) -> Sequence[RemovableHandle]:
        """Hook into a layer before prompts pass through it; the hooks are removed afterwards."""

    def begin(self, number: int, prompt: LanguagePrompt) -> None:
        """A prompt is about to pass through the layer that was attached, or through all layers."""

    def passed(self, layer: int, hidden: torch.Tensor) -> None:
        """What a layer gave for the prompt that began last: hidden states [tokens, hidden]."""


class Layers(Protocol):
    """A model whose layers can be watched."""

    @property
    def name(self) -> str:
        """What the model is called in messages."""

    @property
    def config(self) -> Any:
        """The configuration of the text model, from transformers."""

    def walk(
        self, prompts: Sequence[LanguagePrompt], watcher: Watcher, progress: Progress = silent
    ) -> None:
        """Send the prompts through all layers. Raises `KPruneError` for NaN or infinity."""


def open_layers(model: Any, device: str = "auto") -> Layers:
    """The layers of a folder, or of a transformers model in memory, which stays on its device.

    Layers that were opened already are given back.
    """
    if isinstance(model, FolderLayers | MemoryLayers):
        return model
    return FolderLayers(model, device) if isinstance(model, str | Path) else MemoryLayers(model)


class MemoryLayers:
    """The layers of a model in memory."""

    def __init__(self, model: Any) -> None:
        """Raises `KPruneError` for fused experts; give the folder of such a model instead."""
        self._model, self._layers = bare_model(model), decoder_layers(model)
        self.name, self.config = type(model).__name__, self._model.config.get_text_config()

    def walk(
        self, prompts: Sequence[LanguagePrompt], watcher: Watcher, progress: Progress = silent
    ) -> None:
        """Send the prompts through all layers, one prompt after another."""
        decoder = self._model.get_decoder()
        device = decoder.get_input_embeddings().weight.device

        def hook_of(layer: int) -> Any:
            return lambda module, args, output: watcher.passed(layer, _hidden(output, layer, self))

        handles = []
        for layer, module in enumerate(self._layers):
            handles += [
                *watcher.attach(layer, module),
                module.register_forward_hook(hook_of(layer)),
            ]
        with _removed(handles), evaluating(decoder), torch.no_grad():
            for number, prompt in enumerate(prompts):
                watcher.begin(number, prompt)
                decoder(input_ids=torch.from_numpy(prompt.ids)[None].to(device), use_cache=False)
                progress(f"watch {self.name}", (number + 1) / len(prompts))


class FolderLayers:
    """The layers of a model's folder, one in memory at a time."""

    def __init__(
        self, folder: str | Path, device: str = "auto", *, name: str | None = None
    ) -> None:
        """Raises `KPruneError` for what `kprune sparsify` refuses too: no weights of its own, a
        quantised body, a family that is not in the table."""
        body = open_body(folder)
        self._network = build_network(body, pick_device(device))
        self.folder = body.base.folder
        self.name, self.config = name or self.folder.name, self._network.config

    @property
    def shape(self) -> tuple[tuple[int, ...], int]:
        """The embedding's shape and the number of layers."""
        body = self._network.body
        return tuple(body.embedding.shape), body.num_layers

    def walk(
        self, prompts: Sequence[LanguagePrompt], watcher: Watcher, progress: Progress = silent
    ) -> None:
        """Send the prompts through all layers, one layer after another."""
        # Prompts of one length follow each other, because they share masks and positions.
        ordered = sorted(enumerate(prompts), key=lambda one: len(one[1].ids))
        groups = list(_groups(ordered, self._network.hidden_size * _NUMBER_BYTES))
        total, done = len(prompts) * self._network.body.num_layers, 0
        for group in groups:
            hidden = {number: self._network.embed(torch.from_numpy(p.ids)) for number, p in group}
            for layer in range(self._network.body.num_layers):
                self._pass(layer, group, hidden, watcher)
                done += len(group)
                progress(f"watch {self.name}", done / total)

    def _pass(
        self,
        layer: int,
        group: Sequence[tuple[int, LanguagePrompt]],
        hidden: dict[int, torch.Tensor],
        watcher: Watcher,
    ) -> None:
        """Send a group through one layer; its hidden states are replaced."""
        module = self._network.load(layer, self._network.body.base.folder)
        with _removed(watcher.attach(layer, module)):
            for length, ones in groupby(group, key=lambda one: len(one[1].ids)):
                self._network.prepare(length)
                for number, prompt in ones:
                    watcher.begin(number, prompt)
                    output = self._network.run(layer, hidden[number])
                    hidden[number] = output
                    watcher.passed(layer, _hidden(output[None], layer, self))
        self._network.unload(layer)


def _groups(
    ordered: Sequence[tuple[int, LanguagePrompt]], bytes_per_token: int
) -> Iterator[list[tuple[int, LanguagePrompt]]]:
    """Prompts whose hidden states fit into memory together; at least one each."""
    group: list[tuple[int, LanguagePrompt]] = []
    taken = 0
    for number, prompt in ordered:
        needed = len(prompt.ids) * bytes_per_token
        if group and taken + needed > _MOST_HIDDEN_BYTES:
            yield group
            group, taken = [], 0
        group.append((number, prompt))
        taken += needed
    if group:
        yield group


def _hidden(output: Any, layer: int, source: Layers) -> torch.Tensor:
    """The hidden states [tokens, hidden] of a layer's output, checked."""
    hidden: torch.Tensor = (output[0] if isinstance(output, tuple) else output)[0]
    if not bool(torch.isfinite(hidden).all()):
        raise KPruneError(f"layer {layer} of {source.name} gives NaN or infinity; is it damaged?")
    return hidden


@contextmanager
def _removed(handles: Sequence[RemovableHandle]) -> Iterator[None]:
    """Remove hooks at the end of the block."""
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
