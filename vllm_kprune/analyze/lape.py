"""Language-specific neurons, by the entropy of their activation probabilities; before and after.

    change = compare_neurons(count_active(original, prompts), count_active(pruned, prompts))
    change.languages["ko"].specific.before, .after

Tang et al. 2024, *Language-Specific Neurons* (section 2): with p_k the activation probability of
a neuron for language k (`neurons`),

    q_k = p_k / sum_j p_j               LAPE = - sum_k q_k ln q_k

from 0, active for one language alone, to ln(languages), equally often for all. A neuron that is
never active has none. Language-specific neurons are the share with the lowest LAPE (1 %) of those
whose largest p_k is above a quantile of all probabilities (95 %); such a neuron belongs to every
language whose p_k is above it.

`compare_neurons` orders all neurons by the original's LAPE and averages groups of equally many, as
figure 3 of Kurz et al. does: for one language, of the neurons whose probability for it is at least
their mean over the languages. The intervals there are 95 %, over the neurons of a group.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from vllm_kprune.analyze.neurons import NeuronActivity
from vllm_kprune.arrays import Booleans, Floats, Integers
from vllm_kprune.errors import KPruneError

__all__ = [
    "LanguageNeurons",
    "NeuronChange",
    "NeuronGroup",
    "SpecificNeurons",
    "check_languages",
    "compare_neurons",
    "lape",
    "specific_neurons",
]

_NORMAL = 1.959964


@dataclass(frozen=True)
class NeuronGroup:
    """Means over neurons with similar LAPE: entropy in nats and activation probability, of the
    original and of the pruned model, and half the width of the probabilities' intervals."""

    neurons: int
    entropy_before: float
    entropy_after: float | None
    before: float
    after: float
    before_margin: float
    after_margin: float


@dataclass(frozen=True)
class SpecificNeurons:
    """A language's own neurons: how many in each layer, and their mean activation probability for
    the language, of the original and of the pruned model; None if there are none."""

    by_layer: tuple[int, ...]
    before: float | None
    after: float | None

    @property
    def neurons(self) -> int:
        """How many there are."""
        return sum(self.by_layer)


@dataclass(frozen=True)
class LanguageNeurons:
    """The neurons that are active for a language: groups by rising LAPE, and its own ones."""

    groups: tuple[NeuronGroup, ...]
    specific: SpecificNeurons


@dataclass(frozen=True)
class NeuronChange:
    """What pruning changes: `silent` neurons are never active, in the original or after."""

    neurons: int
    silent_before: int
    silent_after: int
    languages: Mapping[str, LanguageNeurons]

    def document(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def check_languages(count: int) -> None:
    """Raise `KPruneError` if there are too few languages for an entropy."""
    if count < 2:
        raise KPruneError("language-specific neurons need texts of at least two languages")


def lape(probability: Floats) -> Floats:
    """The entropy of each neuron in nats [neurons], from probabilities [languages, neurons].

    NaN for a neuron that is never active.

    >>> lape(np.array([[0.5, 0.2], [0.0, 0.2]])).round(4).tolist()
    [0.0, 0.6931]
    """
    total = probability.sum(axis=0)
    shares = np.divide(probability, total, out=np.zeros_like(probability), where=total > 0)
    logarithms = np.log(shares, out=np.zeros_like(shares), where=shares > 0)
    # Adding 0 turns -0 into 0.
    entropy = -(shares * logarithms).sum(axis=0) + 0.0
    return np.where(total > 0, entropy, np.nan)


def specific_neurons(
    probability: Floats, *, share: float = 0.01, quantile: float = 0.95
) -> list[Integers]:
    """The numbers of each language's own neurons, from probabilities [languages, neurons]."""
    threshold = np.quantile(probability, quantile)
    candidates = np.flatnonzero(probability.max(axis=0) > threshold)
    entropy = lape(probability)[candidates]
    count = min(len(candidates), max(1, round(share * probability.shape[1])))
    chosen = np.sort(candidates[np.argsort(entropy, kind="stable")[:count]])
    return [chosen[row[chosen] > threshold] for row in probability]


def compare_neurons(
    original: NeuronActivity, pruned: NeuronActivity, *, groups: int = 40, share: float = 0.01
) -> NeuronChange:
    """Compare activity over the same prompts. `share` is that of language-specific neurons.

    Raises `KPruneError` for other prompts or another network, and for a single language.
    """
    if (original.languages, original.tokens, original.sites) != (
        pruned.languages,
        pruned.tokens,
        pruned.sites,
    ):
        raise KPruneError("the two models were given other prompts, or have other layers")
    check_languages(len(original.languages))
    before, after = original.probability(), pruned.probability()
    entropies = lape(before), lape(after)
    own = specific_neurons(before, share=share)
    languages = {}
    for number, language in enumerate(original.languages):
        mine = (before[number] >= before.mean(axis=0)) & (before[number] > 0)
        probabilities = before[number], after[number]
        languages[language] = LanguageNeurons(
            _groups(mine, entropies, probabilities, groups),
            _specific(own[number], probabilities, original),
        )
    silent_before, silent_after = (int(np.isnan(one).sum()) for one in entropies)
    return NeuronChange(before.shape[1], silent_before, silent_after, languages)


def _groups(
    mine: Booleans,
    entropies: tuple[Floats, Floats],
    probabilities: tuple[Floats, Floats],
    count: int,
) -> tuple[NeuronGroup, ...]:
    members = np.flatnonzero(mine)
    ordered = members[np.argsort(entropies[0][members], kind="stable")]
    parts = np.array_split(ordered, min(count, max(1, len(ordered))))
    return tuple(_group(part, entropies, probabilities) for part in parts if len(part))


def _group(
    part: Integers, entropies: tuple[Floats, Floats], probabilities: tuple[Floats, Floats]
) -> NeuronGroup:
    before, after = (values[part] for values in probabilities)
    known = entropies[1][part]
    known = known[~np.isnan(known)]
    return NeuronGroup(
        neurons=len(part),
        entropy_before=float(entropies[0][part].mean()),
        entropy_after=float(known.mean()) if len(known) else None,
        before=float(before.mean()),
        after=float(after.mean()),
        before_margin=_margin(before),
        after_margin=_margin(after),
    )


def _margin(values: Floats) -> float:
    """Half the width of the mean's 95 % interval; 0 for a single neuron."""
    return float(_NORMAL * values.std(ddof=1) / len(values) ** 0.5) if len(values) > 1 else 0.0


def _specific(
    own: Integers, probabilities: tuple[Floats, Floats], activity: NeuronActivity
) -> SpecificNeurons:
    before, after = (float(p[own].mean()) if len(own) else None for p in probabilities)
    last = max(site.layer for site in activity.sites)
    by_layer = np.bincount(activity.layers()[own], minlength=last + 1)
    return SpecificNeurons(tuple(map(int, by_layer)), before, after)
