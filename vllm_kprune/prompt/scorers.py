"""How important each token of a text is: scorers behind one interface."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from vllm_kprune.errors import KPruneError, nearest

__all__ = ["DEFAULT_SCORER", "SCORERS", "RandomScorer", "Scorer", "Tokens", "make_scorer"]


@dataclass(frozen=True)
class Tokens:
    """A text and its tokens: `ids` [n], and `offsets` [n] of (begin, end) characters."""

    text: str
    ids: tuple[int, ...]
    offsets: tuple[tuple[int, int], ...]


class Scorer(Protocol):
    """Says how important each token is."""

    name: str

    def scores(
        self,
        tokens: Tokens,
        *,
        query: str | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> npt.NDArray[np.float32]:
        """[n], higher is more important."""
        ...


class RandomScorer:
    """A baseline: the same text always loses the same tokens."""

    name = "random"

    def __init__(self, seed: int = 0) -> None:
        self._seed = seed

    def scores(
        self,
        tokens: Tokens,
        *,
        query: str | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> npt.NDArray[np.float32]:
        """[n] uniform numbers that depend on the seed and the text alone."""
        digest = hashlib.blake2b(tokens.text.encode("utf-8", "surrogatepass"), digest_size=8)
        seed = [self._seed, int.from_bytes(digest.digest(), "little")]
        return np.random.default_rng(seed).random(len(tokens.ids), dtype=np.float32)


SCORERS: tuple[str, ...] = ("random",)
DEFAULT_SCORER = "random"


def make_scorer(name: str, folder: Path, *, seed: int = 0, **how: Any) -> Scorer:
    """The scorer of this name for the model in `folder`; `KPruneError` for an unknown name."""
    if name not in SCORERS:
        raise KPruneError(f"unknown scorer {name!r}; {nearest(name, SCORERS)}")
    return RandomScorer(seed)
