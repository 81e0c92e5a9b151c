"""How often each neuron of the feed-forward networks is active, by language.

    activity = count_active(model_or_folder, prompts)
    activity.probability()        # [languages, neurons]

In a gated feed-forward network, down(act(gate(x)) * up(x)), a neuron is one output of `gate`. It is
active for a token if act(gate(x)) > 0 (Tang et al. 2024, *Language-Specific Neurons*, section 2).
Its activation probability for a language is the share of the language's tokens for which it is
active. The token that begins a text does not count.

In a mixture, each expert's neurons are neurons of the layer. A token that the router does not send
to an expert activates none of its neurons but counts in the share, so that probabilities of all
neurons can be compared. Only a folder's mixture can be watched, since transformers fuses the
experts of a model in memory.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from vllm_kprune.analyze.layers import open_layers
from vllm_kprune.analyze.prompts import LanguagePrompt, languages_of
from vllm_kprune.arrays import Floats, Integers
from vllm_kprune.errors import KPruneError
from vllm_kprune.progress import Progress, silent
from vllm_kprune.sparsify.experts import SeparateExperts

__all__ = ["NeuronActivity", "NeuronSite", "count_active"]


@dataclass(frozen=True)
class NeuronSite:
    """One feed-forward network: its layer, its place there (`mlp`), its number of neurons."""

    layer: int
    place: str
    neurons: int


@dataclass(frozen=True)
class NeuronActivity:
    """For how many tokens each neuron was active: `active` is [languages, neurons of all sites].

    `tokens` is the number of text tokens of each language.
    """

    languages: tuple[str, ...]
    tokens: tuple[int, ...]
    sites: tuple[NeuronSite, ...]
    active: Integers

    def probability(self) -> Floats:
        """The activation probability [languages, neurons]."""
        return self.active / np.array(self.tokens, np.float64)[:, None]

    def layers(self) -> Integers:
        """The layer of each neuron."""
        return np.repeat([s.layer for s in self.sites], [s.neurons for s in self.sites])


def count_active(
    model: Any, prompts: Sequence[LanguagePrompt], *, progress: Progress = silent
) -> NeuronActivity:
    """Count over the prompts, in every layer of a folder or of a transformers model in memory.

    Raises `KPruneError` for a layer without a gated feed-forward network.
    """
    layers, languages = open_layers(model), languages_of(prompts)
    watcher = _ActiveWatcher(languages)
    layers.walk(prompts, watcher, progress)
    tokens = [
        sum(len(one.ids) - one.begin for one in prompts if one.language == language)
        for language in languages
    ]
    sites = sorted(watcher.counts, key=lambda site: (site.layer, _natural(site.place)))
    active = np.concatenate([watcher.counts[site] for site in sites], axis=1)
    return NeuronActivity(languages, tuple(tokens), tuple(sites), active)


class _ActiveWatcher:
    """Counts at each site: [languages, neurons]."""

    def __init__(self, languages: Sequence[str]) -> None:
        self._numbers = {language: number for number, language in enumerate(languages)}
        self.counts: dict[NeuronSite, Integers] = {}

    def attach(self, layer: int, module: nn.Module) -> Sequence[RemovableHandle]:
        handles: list[RemovableHandle] = []
        for place, network in module.named_modules():
            if isinstance(network, SeparateExperts):
                handles.append(network.register_forward_pre_hook(self._routed))
            elif hasattr(network, "gate_proj") and hasattr(network, "down_proj"):
                handles.append(self._watch(layer, place, network))
        if not handles:
            raise KPruneError(
                f"layer {layer} has no gated feed-forward network (gate_proj, up_proj, down_proj)"
            )
        return handles

    def begin(self, number: int, prompt: LanguagePrompt) -> None:
        self._language, self._begin = self._numbers[prompt.language], prompt.begin

    def passed(self, layer: int, hidden: torch.Tensor) -> None:
        """Nothing: only what is inside the layer counts."""

    def _routed(self, experts: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        """Note the experts of each token [tokens, chosen] before the experts run."""
        self._chosen = args[1]

    def _watch(self, layer: int, place: str, network: Any) -> RemovableHandle:
        _, dot, last = place.rpartition(".")
        expert = int(last) if dot and last.isdigit() else None
        function: Callable[..., torch.Tensor] = (
            network.activation if expert is not None else network.act_fn
        )
        # Made here, because an expert that no token is sent to is never called.
        site = NeuronSite(layer, place, network.gate_proj.out_features)
        shape = (len(self._numbers), site.neurons)
        count = self.counts.setdefault(site, np.zeros(shape, np.int64))

        def hook(module: nn.Module, args: Any, gate: torch.Tensor) -> None:
            gate = gate.reshape(-1, site.neurons)
            text = self._text_rows(len(gate), expert).to(gate.device)
            active = (function(gate) > 0) & text[:, None]
            count[self._language] += active.sum(0).cpu().numpy()

        handle: RemovableHandle = network.gate_proj.register_forward_hook(hook)
        return handle

    def _text_rows(self, rows: int, expert: int | None) -> torch.Tensor:
        """Which rows are tokens of the text: all but the first, which may be at other experts."""
        if expert is None:
            return torch.arange(rows) >= self._begin
        tokens = torch.where(self._chosen == expert)[0]
        return tokens >= self._begin


def _natural(place: str) -> list[tuple[int, str]]:
    """Places in order, with expert 10 after expert 9."""
    return [(int(part), "") if part.isdigit() else (0, part) for part in place.split(".")]
