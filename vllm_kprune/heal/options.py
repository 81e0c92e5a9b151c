"""The options of `kprune heal`, and what they mean together."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from vllm_kprune.errors import KPruneError
from vllm_kprune.options import option
from vllm_kprune.sparsify.options import DeviceOptions

__all__ = ["LEARNING_RATES", "HealOptions", "What"]

What = Literal["all", "embeddings", "layers", "lora"]

# By whether the model is sparsified, for AdamW and small batches. A sparsified model has much to
# get back. One that only lost vocabulary predicts what the original does: with ten times the rate
# it forgot more than it learned (docs/results.md). An adapter begins at zero, with larger steps.
LEARNING_RATES: Mapping[bool, Mapping[What, float]] = {
    True: {"all": 2e-4, "embeddings": 2e-4, "layers": 2e-4, "lora": 1e-3},
    False: {"all": 2e-5, "embeddings": 2e-4, "layers": 2e-5, "lora": 1e-4},
}
_STEPS = 200
# A model that only lost vocabulary predicts what the original does: it would learn nothing from it.
_FOR_SPARSE, _FOR_VOCABULARY = 0.8, 0.2
_LIMIT = re.compile(r"(?P<name>[^=]+)=(?P<percent>\d+(\.\d+)?)\s*%?")


@dataclass(frozen=True, kw_only=True)
class HealOptions(DeviceOptions):
    """How a model is healed: what the options of `kprune heal` of these names say.

    `text` and `held_out` have `FILE` or `ko=FILE` for each text.
    """

    text: tuple[str, ...] = option(
        (),
        "Text to train on (.txt, .jsonl, also .gz or .zst): FILE, or ko=FILE, which also checks "
        "that it is Korean; repeat for several. They take turns. The last part of each is not "
        "trained on: it shows which state is best.",
        metavar="[LANGUAGE=]FILE",
    )
    held_out: tuple[str, ...] = option(
        (),
        "Text that shows which state is best, instead of the last part of --text; repeat for "
        "several.",
        metavar="[LANGUAGE=]FILE",
    )
    languages: tuple[str, ...] = option(
        (),
        "Languages that decide which state is best, such as ko,en; their text comes from --text.",
        commas=True,
        default_text="all that have held-out text",
    )
    what: What = option(
        "layers",
        "What is trained. layers: all weights but embedding and LM head. embeddings: only these. "
        "all: every weight of the text model. lora: low-rank adapters of the layers' matrices, "
        "which are merged at the end.",
    )
    steps: int | None = option(None, "Steps of training.", least=1, default_text=str(_STEPS))
    minutes: float | None = option(
        None, "Instead of --steps: as many steps as fit into this time, by a first measurement.",
        above=0,
    )  # fmt: skip
    batch: int = option(2, "Windows of text in each step; they are passed one at a time.", least=1)
    length: int = option(512, "Tokens of each window.", least=8)
    evaluations: int = option(
        8, "How often the held-out text is measured, evenly over the steps.", least=1
    )
    learning_rate: float | None = option(
        None,
        "Highest learning rate; it rises for a twentieth of the steps and then falls to zero.",
        above=0,
        most=1,
        default_text="2e-4 (lora: 1e-3) for a sparsified model, else 2e-5 (embeddings: 2e-4, "
        "lora: 1e-4)",
    )
    distillation: float | None = option(
        None,
        "Share of the loss that is the distance from the original's predictions; the rest is "
        "language modelling.",
        least=0,
        most=1,
        default_text=f"{_FOR_SPARSE} for a sparsified model, {_FOR_VOCABULARY} for others",
    )
    rank: int = option(16, "Rank of the adapters of --what lora.", least=1)
    keep_within: tuple[str, ...] = option(
        (),
        "How much worse a language's held-out text may become, in bits per character: en=1%; "
        "states that are worse are not kept. Repeat for several.",
        metavar="LANGUAGE=PERCENT",
    )
    seed: int = option(0, "Seed of the order of the text, and of the adapters.", least=0)
    memory: float | None = option(
        None,
        "Memory that may be used, in GB; a run that needs more is refused at once.",
        above=0,
        default_text="80 % of what is available",
    )

    def for_model(self, *, sparsified: bool) -> "HealOptions":
        """The options, with what is usual for such a model where they leave it open."""
        return replace(
            self,
            learning_rate=self.learning_rate or LEARNING_RATES[sparsified][self.what],
            distillation=(_FOR_SPARSE if sparsified else _FOR_VOCABULARY)
            if self.distillation is None
            else self.distillation,
        )

    @property
    def limits(self) -> dict[str, float]:
        """Language -> share by which it may become worse: {"en": 0.01}."""
        return dict(map(_limit, self.keep_within))

    def check(self) -> None:
        """Raise `KPruneError` for options that do not go together."""
        if not self.text:
            if self.languages:
                wanted = " ".join(f"--text {code}=FILE" for code in self.languages)
                raise KPruneError(
                    f"--languages {','.join(self.languages)}: kprune ships word lists but no "
                    f"running text; give a text of each language: {wanted}"
                )
            raise KPruneError("healing needs a text: --text FILE, or ko=FILE")
        if self.steps and self.minutes:
            raise KPruneError("--steps and --minutes both say when to end; drop one")
        _ = self.limits

    @property
    def planned_steps(self) -> int | None:
        """Number of steps; None if the time decides."""
        return None if self.minutes else self.steps or _STEPS


def _limit(value: str) -> tuple[str, float]:
    found = _LIMIT.fullmatch(value.strip())
    if not found:
        raise KPruneError(f"--keep-within {value}: expected a language and a percentage: en=1%")
    return found["name"].strip(), float(found["percent"]) / 100
