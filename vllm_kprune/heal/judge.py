"""Which state of a training is kept: by the held-out text of each language.

A state's score is the mean, over the languages that decide, of its bits per character divided by
those before the first step. A state is accepted if its score is the best so far and below 1, and no
language of `--keep-within` is worse than allowed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from tokenizers import Tokenizer

from vllm_kprune.analyze.perplexity import Perplexity, measure_perplexity
from vllm_kprune.heal.network import TextModel

__all__ = ["Judge", "Standing", "interval_of"]


@dataclass(frozen=True)
class Standing:
    """Bits per character by language, the score, and the languages that became too bad."""

    bits: Mapping[str, float]
    score: float
    too_bad: tuple[str, ...]


@dataclass(frozen=True)
class Judge:
    """Held-out documents by language, which languages decide, and how much worse some may get."""

    encoder: Tokenizer
    held_out: Mapping[str, Sequence[str]]
    deciding: tuple[str, ...]
    limits: Mapping[str, float]
    length: int

    def measure(self, model: TextModel) -> dict[str, Perplexity]:
        """Perplexity and bits per character of each language; `KPruneError` for NaN."""
        return measure_perplexity(model.causal, self.encoder, self.held_out, length=self.length)

    def standing(self, bits: Mapping[str, float], start: Mapping[str, float]) -> Standing:
        """What a state is worth, by the bits per character before the first step.

        With {"ko": 1.8, "en": 1.01} after {"ko": 2.0, "en": 1.0}, en within 0.5 %, and ko alone to
        decide, the score is 0.9, and en is too bad.
        """
        too_bad = tuple(
            name for name, limit in self.limits.items() if bits[name] > start[name] * (1 + limit)
        )
        names = self.deciding or tuple(bits)
        return Standing(bits, fmean(bits[name] / start[name] for name in names), too_bad)


def interval_of(measured: Mapping[str, Perplexity]) -> dict[str, Any]:
    """Bits per character with interval, tokens and characters of each language, for the record."""
    return {
        name: {
            "bits_per_character": one.bits_per_character.value,
            "interval": one.bits_per_character.interval,
            "tokens": one.tokens,
            "characters": one.characters,
        }
        for name, one in measured.items()
    }
