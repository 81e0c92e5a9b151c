"""Scores that say which tokens of a prompt matter; all behind one interface.

`rarity` needs no weights: rare words stay, because frequent ones can be guessed. `attention` is
LitePruner's (section 2): what a token receives in the first attention layer; `random` its baseline.
These prune a passage the same way in every prompt, so prefix caches hit; `question` looks at what
is asked. Which decides best was measured: benchmarks/litepruner_quality.py, table in README.md.
Making a scorer reads from the model's folder only what that scorer needs.
"""

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from vllm_kprune.errors import KPruneError, nearest
from vllm_kprune.prompt.tokens import IsCancelled, Tokens

if TYPE_CHECKING:
    from vllm_kprune.prompt.layer_config import Precision
    from vllm_kprune.prompt.ranker import FirstLayer

__all__ = [
    "DEFAULT_SCORER",
    "SCORERS",
    "Attention",
    "RandomScores",
    "Scorer",
    "Tokens",
    "make_scorer",
]

Scores = npt.NDArray[np.float32]


class Scorer(Protocol):
    """Something that tells how important each token is; the same for the same text, everywhere.

    `uses_query`: the question changes the scores, so a passage is not pruned alike for each.
    """

    name: str
    uses_query: bool

    def scores(
        self, tokens: Tokens, *, query: str | None = None, cancelled: IsCancelled | None = None
    ) -> Scores:
        """[tokens] finite, higher is more important. `cancelled` is asked now and then."""


class RandomScores:
    """The baseline: scores that depend on the text and the seed alone."""

    name = "random"
    uses_query = False

    def __init__(self, seed: int = 0) -> None:
        self._seed = seed

    def scores(
        self, tokens: Tokens, *, query: str | None = None, cancelled: IsCancelled | None = None
    ) -> Scores:
        """[tokens] independent and uniform in [0, 1)."""
        text = f"{self._seed}\0{tokens.text}".encode(errors="surrogatepass")
        seed = int.from_bytes(hashlib.blake2b(text, digest_size=16).digest())
        return np.random.default_rng(seed).random(len(tokens.ids), dtype=np.float32)


class Attention:
    """Attention received in the first layer, mean over heads and queries (the paper's score)."""

    name = "attention"
    uses_query = False

    def __init__(
        self, layer: "FirstLayer", *, window: int | None = None, causal: bool = False
    ) -> None:
        self._layer, self._window, self._causal = layer, window, causal

    def scores(
        self, tokens: Tokens, *, query: str | None = None, cancelled: IsCancelled | None = None
    ) -> Scores:
        """[tokens] attention received; the mean of a prompt of n tokens is 1/n."""
        if not tokens.ids:
            return np.zeros(0, dtype=np.float32)
        # Tokens of images have no embedding; they are control tokens, which stay in any case.
        rows = self._layer.rows
        ids = [token_id if token_id < rows else 0 for token_id in tokens.ids]
        [received] = self._layer.received_attention(
            [ids], causal=self._causal, window=self._window, cancelled=cancelled
        )
        return received


def _make_random(folder: Path, how: Mapping[str, Any]) -> Scorer:
    return RandomScores(how["seed"])


def _make_attention(folder: Path, how: Mapping[str, Any]) -> Scorer:
    from vllm_kprune.prompt.ranker import FirstLayer

    layer = FirstLayer.from_pretrained(folder, precision=how["precision"])
    return Attention(layer, window=how["window"], causal=how["causal"])


def _make_rarity(folder: Path, how: Mapping[str, Any]) -> Scorer:
    from vllm_kprune.prompt.rarity import Rarity

    return Rarity()


def _make_question(folder: Path, how: Mapping[str, Any]) -> Scorer:
    from vllm_kprune.prompt.question import Question

    return Question()


_MAKERS: Mapping[str, Callable[[Path, Mapping[str, Any]], Scorer]] = {
    "rarity": _make_rarity,
    "question": _make_question,
    "attention": _make_attention,
    "random": _make_random,
}
SCORERS: tuple[str, ...] = tuple(_MAKERS)
DEFAULT_SCORER = "rarity"


def make_scorer(
    name: str,
    folder: Path,
    *,
    window: int | None = None,
    causal: bool = False,
    precision: "Precision" = "float32",
    seed: int = 0,
) -> Scorer:
    """Make a scorer for the tokens of the model in `folder`.

    `window` (tokens), `causal` and `precision` are for attention, `seed` for random. Raises
    `KPruneError` for an unknown name, or a model whose first layer cannot be read.
    """
    if name not in _MAKERS:
        raise KPruneError(f"unknown scorer {name!r}: {nearest(name, SCORERS)}")
    how = {"window": window, "causal": causal, "precision": precision, "seed": seed}
    return _MAKERS[name](folder, how)
