"""Scorers say which pieces of a prompt matter. All of them have one interface, `Scorer`.

`rarity` needs no weights: rare words stay, because frequent ones can be guessed. `sentences` and
`question` also look at the question, and are `rarity` without one. `attention` is LitePruner's
score (section 2): the attention that a token receives in the first layer of a small model. `random`
is the baseline. benchmarks/litepruner_quality.py measures which is best. Making a scorer reads only
what it needs from the model's folder.
"""

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypedDict, Unpack

import numpy as np

from vllm_kprune.arrays import Floats
from vllm_kprune.errors import KPruneError, nearest
from vllm_kprune.prompt.cut_text import CutText
from vllm_kprune.prompt.tokens import IsCancelled

if TYPE_CHECKING:
    from vllm_kprune.prompt.layer_config import Precision
    from vllm_kprune.prompt.ranker import FirstLayer

__all__ = [
    "DEFAULT_SCORER",
    "SCORERS",
    "Attention",
    "RandomScores",
    "Scorer",
    "ScorerSettings",
    "make_scorer",
]


class Scorer(Protocol):
    """Says how important each token of a text is. The same text has the same scores everywhere.

    `uses_query`: scores depend on the question, so a passage is pruned differently for each.
    """

    name: str
    uses_query: bool

    def scores(
        self, passage: CutText, *, query: str | None = None, cancelled: IsCancelled | None = None
    ) -> Floats:
        """[pieces] finite, higher is more important. `cancelled` is asked now and then."""


class ScorerSettings(TypedDict, total=False):
    """`window` (tokens), `causal` and `precision` are for `attention`, `seed` is for `random`."""

    window: int | None
    causal: bool
    precision: "Precision"
    seed: int


class RandomScores:
    """The baseline: scores depend only on the text and the seed."""

    name = "random"
    uses_query = False

    def __init__(self, seed: int = 0) -> None:
        self._seed = seed

    def scores(
        self, passage: CutText, *, query: str | None = None, cancelled: IsCancelled | None = None
    ) -> Floats:
        """[pieces] independent and uniform in [0, 1)."""
        # A digest and not hash(), which differs between processes. \0 keeps seed and text apart.
        text = f"{self._seed}\0{passage.text}".encode(errors="surrogatepass")
        seed = int.from_bytes(hashlib.blake2b(text, digest_size=16).digest())
        return np.random.default_rng(seed).random(len(passage.pieces.starts))


class Attention:
    """Attention received in the first layer, the mean over heads and queries (LitePruner)."""

    name = "attention"
    uses_query = False

    def __init__(
        self, layer: "FirstLayer", *, window: int | None = None, causal: bool = False
    ) -> None:
        self._layer, self._window, self._causal = layer, window, causal

    def scores(
        self, passage: CutText, *, query: str | None = None, cancelled: IsCancelled | None = None
    ) -> Floats:
        """[pieces] the mean attention that its tokens receive; that of n tokens is 1/n."""
        tokens = passage.tokens
        if not len(tokens.ids):
            return np.zeros(len(passage.pieces.starts))
        # Image tokens have no embedding. Row 0 will do: they are control tokens and stay anyway.
        rows = self._layer.rows
        ids = np.where(tokens.ids < rows, tokens.ids, 0).tolist()
        [received] = self._layer.received_attention(
            [ids], causal=self._causal, window=self._window, cancelled=cancelled
        )
        return passage.pieces.means(received)


def _make_random(folder: Path | None, settings: ScorerSettings) -> Scorer:
    return RandomScores(settings.get("seed", 0))


def _make_attention(folder: Path | None, settings: ScorerSettings) -> Scorer:
    # Imported here, because torch takes long to load and the other scorers do without.
    from vllm_kprune.prompt.ranker import FirstLayer

    if folder is None:
        raise KPruneError(
            "scorer attention reads the weights of a small model; name one as the ranker"
        )
    layer = FirstLayer.from_pretrained(folder, precision=settings.get("precision", "float32"))
    window, causal = settings.get("window"), settings.get("causal", False)
    return Attention(layer, window=window, causal=causal)


def _make_rarity(folder: Path | None, settings: ScorerSettings) -> Scorer:
    from vllm_kprune.prompt.rarity import Rarity

    return Rarity()


def _make_question(folder: Path | None, settings: ScorerSettings) -> Scorer:
    from vllm_kprune.prompt.question import Question

    return Question()


def _make_sentences(folder: Path | None, settings: ScorerSettings) -> Scorer:
    from vllm_kprune.prompt.sentences import Sentences

    return Sentences()


_MAKERS: Mapping[str, Callable[[Path | None, ScorerSettings], Scorer]] = {
    "sentences": _make_sentences,
    "rarity": _make_rarity,
    "question": _make_question,
    "attention": _make_attention,
    "random": _make_random,
}
SCORERS: tuple[str, ...] = tuple(_MAKERS)
DEFAULT_SCORER = "sentences"


def make_scorer(name: str, folder: Path | None, **settings: Unpack[ScorerSettings]) -> Scorer:
    """Make a scorer for the tokens of the model in `folder`; None if there is no model.

    Raises `KPruneError` for an unknown name, or if the scorer needs a model whose first layer
    cannot be read.
    """
    if name not in _MAKERS:
        raise KPruneError(f"unknown scorer {name!r}: {nearest(name, SCORERS)}")
    return _MAKERS[name](folder, settings)
