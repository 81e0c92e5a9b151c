"""How much pruning changes language-agnostic and language-specific features, layer by layer.

    prompts = make_prompts(encoder, model.config, {"ko": [...], "en": [...]}, length=256)
    original = embed_prompts(original_model_or_folder, prompts)
    change = compare_features(original, embed_prompts(pruned, prompts))
    change.agnostic[layer].difference      # one number for each of change.languages

The embedding of a prompt in a layer is the mean of the layer's output over the prompt's tokens,
without the token that begins a text. The language-specific subspace of each layer is found from the
original model (`subspace`), and both models' embeddings are split by it, so that the two parts of a
difference are the difference of the parts. For prompts i = 1 ... n of a language, with embedding
e_i of the original and p_i of the pruned model, and P the projection on the subspace:

    specific difference = 1/n sum_i |P (p_i - e_i)|
    agnostic difference = 1/n sum_i |(I - P) (p_i - e_i)|
    size                = 1/n sum_i |P e_i|  and  1/n sum_i |(I - P) e_i|

with Euclidean norms. Kurz et al. (figures 1, 4 and 5) average features over the prompts first and
report the magnitude of the difference of these means; that is `mean_difference`: it does not see
changes that cancel out between prompts. Norms grow from layer to layer and differ much between the
two parts, so `relative` divides by the size.

Prompts of different languages should say the same (parallel text), otherwise topics count as
language. Embeddings of all prompts are in memory: 4 bytes x layers x prompts x hidden.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from vllm_kprune.analyze.layers import open_layers
from vllm_kprune.analyze.prompts import LanguagePrompt
from vllm_kprune.analyze.subspace import specific_basis, split
from vllm_kprune.arrays import Booleans, Floats
from vllm_kprune.errors import KPruneError
from vllm_kprune.progress import Progress, silent

__all__ = ["Embeddings", "FeatureChange", "PartChange", "compare_features", "embed_prompts"]


@dataclass(frozen=True)
class Embeddings:
    """Embeddings of prompts: `values` is [layers, prompts, hidden], `languages` one per prompt."""

    languages: tuple[str, ...]
    values: Floats

    def of(self, language: str) -> Floats:
        """The embeddings of one language: [layers, its prompts, hidden]."""
        return self.values[:, [one == language for one in self.languages]]


@dataclass(frozen=True)
class PartChange:
    """How one part of the features changes in one layer; a number for each language.

    `standard_error` is that of `difference`, over prompts; None for a single prompt.
    """

    difference: tuple[float, ...]
    standard_error: tuple[float | None, ...]
    mean_difference: tuple[float, ...]
    size: tuple[float, ...]

    @property
    def relative(self) -> tuple[float, ...]:
        """The difference as a share of the original's size; 0 for a part that is not there."""
        pairs = zip(self.difference, self.size, strict=True)
        return tuple(change / size if size else 0.0 for change, size in pairs)


@dataclass(frozen=True)
class FeatureChange:
    """The changes of both parts, by layer, and the rank of the language-specific subspace."""

    languages: tuple[str, ...]
    rank: int
    agnostic: tuple[PartChange, ...]
    specific: tuple[PartChange, ...]

    def document(self) -> dict[str, Any]:
        """For JSON: for each part, figures by layer and language."""
        parts = {"agnostic": self.agnostic, "specific": self.specific}
        return {
            "languages": list(self.languages),
            "rank": self.rank,
            **{
                name: [{**vars(one), "relative": one.relative} for one in layers]
                for name, layers in parts.items()
            },
        }


def embed_prompts(
    model: Any, prompts: Sequence[LanguagePrompt], *, progress: Progress = silent
) -> Embeddings:
    """The embeddings of the prompts in every layer of a folder or of a model in memory.

    Raises `KPruneError` for a model that cannot be run, NaN or infinity.
    """
    layers = open_layers(model)
    watcher = _MeanWatcher(layers.config, len(prompts))
    layers.walk(prompts, watcher, progress)
    return Embeddings(tuple(prompt.language for prompt in prompts), watcher.values)


class _MeanWatcher:
    """Keeps the mean hidden state of each prompt in each layer."""

    def __init__(self, config: Any, prompts: int) -> None:
        shape = (config.num_hidden_layers, prompts, config.hidden_size)
        self.values = np.empty(shape, np.float32)

    def attach(self, layer: int, module: nn.Module) -> Sequence[RemovableHandle]:
        return ()

    def begin(self, number: int, prompt: LanguagePrompt) -> None:
        self._number, self._begin = number, prompt.begin

    def passed(self, layer: int, hidden: torch.Tensor) -> None:
        mean = hidden[self._begin :].float().mean(0)
        self.values[layer, self._number] = mean.cpu().numpy()


def compare_features(
    original: Embeddings, pruned: Embeddings, *, rank: int | None = None
) -> FeatureChange:
    """How the features of the pruned model differ from the original's, for the same prompts.

    Without a `rank`, the subspace has one dimension less than there are languages.
    """
    if (original.languages, original.values.shape) != (pruned.languages, pruned.values.shape):
        raise KPruneError("the two models were given other prompts, or differ in shape")
    languages = tuple(dict.fromkeys(original.languages))
    members = [np.array(original.languages) == language for language in languages]
    agnostic: list[PartChange] = []
    specific: list[PartChange] = []
    most = 0
    for before, after in zip(original.values, pruned.values, strict=True):
        means = np.stack([before[mine].mean(axis=0, dtype=np.float64) for mine in members])
        basis = specific_basis(means, rank)
        most = max(most, basis.shape[1])
        sizes = split(before.astype(np.float64), basis)
        changes = split(after.astype(np.float64) - before, basis)
        for part, size, change in zip((agnostic, specific), sizes, changes, strict=True):
            part.append(_part_change(size, change, members))
    return FeatureChange(languages, most, tuple(agnostic), tuple(specific))


def _part_change(size: Floats, change: Floats, members: Sequence[Booleans]) -> PartChange:
    """From [prompts, hidden] of one part in one layer."""
    norms, sizes = np.linalg.norm(change, axis=1), np.linalg.norm(size, axis=1)
    return PartChange(
        difference=tuple(float(norms[mine].mean()) for mine in members),
        standard_error=tuple(_standard_error(norms[mine]) for mine in members),
        mean_difference=tuple(float(np.linalg.norm(change[m].mean(axis=0))) for m in members),
        size=tuple(float(sizes[mine].mean()) for mine in members),
    )


def _standard_error(values: Floats) -> float | None:
    return float(values.std(ddof=1) / len(values) ** 0.5) if len(values) > 1 else None
