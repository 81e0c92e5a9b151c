"""Keep the most important tokens of a text, in their order (LitePruner, section 2, algorithm 1).

    pruner = InputPruner.from_pretrained("models/gemma-3-270m")
    pruner.prune(document, PruneOptions(keep=0.7)).text

Text in, text out: the target model may have another tokenizer than the ranker. What is kept is cut
out of the text, never decoded from ids, so it is a subsequence of its characters.
"""

import math
from collections.abc import Callable, Iterable
from copy import copy
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from vllm_kprune.errors import KPruneError
from vllm_kprune.prompt.pieces import Pieces, Unit, cut_pieces
from vllm_kprune.prompt.scorers import DEFAULT_SCORER, Scorer, make_scorer
from vllm_kprune.prompt.separators import Separators
from vllm_kprune.prompt.tokens import (
    Cancelled,
    ControlTokens,
    IsCancelled,
    Tokens,
    control_tokens,
    encode,
    load_tokenizer,
)

__all__ = ["InputPruner", "Piece", "PruneOptions", "Pruned"]

Count = Callable[[str], int]


@dataclass(frozen=True)
class PruneOptions:
    """How much of a text to keep, and what of it in any case.

    `keep` is a share of the ranker's tokens; `target_tokens`, if given, is the most tokens that may
    remain and takes its place. `force_tokens` are texts that stay wherever they occur ("\\n", "?"),
    `force_first` and `force_last` count tokens. What is forced stays even beyond the budget. A text
    of fewer than `min_tokens` tokens is left as it is. `scorer` None is the pruner's own.
    """

    keep: float = 1.0
    target_tokens: int | None = None
    unit: Unit = "token"
    scorer: str | None = None
    force_tokens: tuple[str, ...] = ()
    force_digits: bool = False
    force_first: int = 0
    force_last: int = 0
    min_tokens: int = 0

    def marked(self, keep: float | None) -> "PruneOptions":
        """These for a marked span: the rate that its mark names, if it does, comes first."""
        return self if keep is None else replace(self, keep=keep, target_tokens=None)

    @property
    def does_nothing(self) -> bool:
        """True if they keep every text whole."""
        return self.keep >= 1 and self.target_tokens is None


@dataclass(frozen=True)
class Piece:
    """A part of a text that is kept or dropped as a whole, to be shown.

    `score` is None where nothing was ranked. `heat` is the share of the tokens that are no more
    important, from 0 to 1; `kept_from` the lowest keep rate at which the piece is kept.
    """

    start: int
    end: int
    text: str
    tokens: int
    score: float | None
    heat: float
    kept_from: float
    kept: bool
    forced: bool


@dataclass(frozen=True, eq=False)
class Pruned:
    """A text and what is kept of it.

    `pieces` are kept or dropped as a whole. `scores`: [tokens] float32, higher is more important;
    None where nothing had to be ranked. `piece_kept`, `piece_forced`: [pieces]. `tokens_before` and
    `tokens_after` are in tokens of the target if it was asked, otherwise of the ranker.
    """

    original: str
    text: str
    tokens: Tokens
    pieces: Pieces
    scores: npt.NDArray[np.float32] | None
    piece_kept: npt.NDArray[np.bool_]
    piece_forced: npt.NDArray[np.bool_]
    tokens_before: int
    tokens_after: int

    @property
    def kept(self) -> npt.NDArray[np.bool_]:
        """[tokens] Is each token kept?"""
        return self.piece_kept[self.pieces.of_token]

    @property
    def piece_scores(self) -> npt.NDArray[np.float64] | None:
        """[pieces] mean score of each piece's tokens; None where nothing was ranked."""
        return None if self.scores is None else _means(self.scores, self.pieces)

    def list_pieces(self) -> list[Piece]:
        """The pieces in order, one by one; slow for long texts, which nobody looks at."""
        starts, ends, sizes = self.pieces.starts, self.pieces.ends, self.pieces.sizes
        scores = self.piece_scores
        heat, kept_from = self._ranks(sizes)
        return [
            Piece(
                start=int(starts[n]),
                end=int(ends[n]),
                text=self.original[starts[n] : ends[n]],
                tokens=int(sizes[n]),
                score=None if scores is None else float(scores[n]),
                heat=float(heat[n]),
                kept_from=float(kept_from[n]),
                kept=bool(self.piece_kept[n]),
                forced=bool(self.piece_forced[n]),
            )
            for n in range(len(starts))
        ]

    def _ranks(
        self, sizes: npt.NDArray[np.int64]
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        scores, total = self.piece_scores, max(int(sizes.sum()), 1)
        if scores is None:
            return np.ones(len(sizes)), np.zeros(len(sizes))
        heat, kept_from = np.empty(len(sizes)), np.empty(len(sizes))
        order = np.argsort(-scores, kind="stable")
        heat[order] = 1 - (np.cumsum(sizes[order]) - sizes[order]) / total
        order = order[np.argsort(~self.piece_forced[order], kind="stable")]
        kept_from[order] = np.cumsum(sizes[order]) / total
        kept_from[self.piece_forced] = 0.0
        return heat, kept_from


class InputPruner:
    """A tokenizer and its scorers; safe to use from several threads."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        make: Callable[[str], Scorer],
        default_scorer: str = DEFAULT_SCORER,
    ) -> None:
        self.tokenizer = tokenizer
        self.default_scorer = default_scorer
        self._make = make
        self._scorers: dict[str, Scorer] = {}
        self._lock = Lock()
        self._control = ControlTokens(control_tokens(tokenizer))
        self._failed: dict[str, KPruneError] = {}

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, *, scorer: str = DEFAULT_SCORER, **how: Any
    ) -> "InputPruner":
        """Read `tokenizer.json` of a model's folder, and of its weights what the scorer needs.

        `how` goes to `make_scorer`: `window`, `causal`, `precision`, `seed`. Raises
        `KPruneError` for a folder without tokenizer.json, an unknown scorer or a model that it
        cannot use.
        """
        folder = Path(folder)
        pruner = cls(load_tokenizer(folder), lambda name: make_scorer(name, folder, **how), scorer)
        pruner.scorer(scorer)
        return pruner

    def scorer(self, name: str | None = None) -> Scorer:
        """The scorer of this name, made on first use."""
        name = name or self.default_scorer
        with self._lock:
            if name in self._failed:
                raise self._failed[name]
            if name not in self._scorers:
                try:
                    self._scorers[name] = self._make(name)
                except KPruneError as error:
                    self._failed[name] = error
                    raise
            return self._scorers[name]

    def protecting(self, names: Iterable[str]) -> "InputPruner":
        """The same, for a target model whose control tokens have these names besides."""
        other = copy(self)
        other._control = ControlTokens(self._control.names | frozenset(names))
        return other

    def tokenize(self, text: str) -> Tokens:
        """The ranker's tokens of `text`, without those that a prompt begins with."""
        encoding = encode(self.tokenizer, text)
        return Tokens(text, tuple(encoding.ids), tuple(encoding.offsets))

    def prune(
        self,
        text: str,
        options: PruneOptions,
        *,
        query: str | None = None,
        count: Count | None = None,
        cancelled: IsCancelled | None = None,
    ) -> Pruned:
        """Drop the least important tokens of `text`.

        `query` is what a query-conditioned scorer looks from; `count` counts tokens as the target
        model does. A text is left whole where dropping would spell a control token that was not
        there. Raises `Cancelled` when `cancelled`, asked between steps, is true.
        """
        step = _Step(cancelled)
        tokens = self.tokenize(text)
        before = count(text) if count else len(tokens.ids)
        step()
        pieces = cut_pieces(text, tokens.offsets, options.unit)
        separators = Separators(text, pieces)
        forced = separators.added(self._forced(tokens, pieces, options))
        cut = _Cut(tokens, pieces, forced, separators)
        if self._leaves(before, options):
            return cut.result(np.ones(len(pieces.starts), dtype=bool), text, None, before, before)
        scores = self.scorer(options.scorer).scores(tokens, query=query, cancelled=cancelled)

        def measure(kept_text: str) -> int:
            step()
            return count(kept_text) if count else len(self.tokenize(kept_text).ids)

        kept = cut.choose(scores, options, measure)
        left = cut.text_of(kept)
        if len(self._control.find(left)) > len(self._control.find(text)):
            kept, left = np.ones(len(pieces.starts), dtype=bool), text
        return cut.result(kept, left, scores, before, measure(left))

    def _leaves(self, tokens: int, options: PruneOptions) -> bool:
        if options.target_tokens is not None:
            return tokens <= options.target_tokens or tokens < options.min_tokens
        return options.keep >= 1 or tokens < options.min_tokens or tokens == 0

    def _forced(
        self, tokens: Tokens, pieces: Pieces, options: PruneOptions
    ) -> npt.NDArray[np.bool_]:
        """[pieces] What stays in any case: control tokens, and what the options name."""
        forced = np.zeros(len(pieces.starts), dtype=bool)
        forced[pieces.of_token[: options.force_first]] = True
        if options.force_last:
            forced[pieces.of_token[-options.force_last :]] = True
        characters = np.zeros(len(tokens.text) + 1, dtype=np.int64)
        for wanted in options.force_tokens:
            begin = tokens.text.find(wanted)
            while begin >= 0:
                characters[begin : begin + len(wanted)] = 1
                begin = tokens.text.find(wanted, begin + len(wanted))
        for begin, end in self._control.find(tokens.text):
            characters[begin:end] = 1
        if options.force_digits:
            characters[[n for n, c in enumerate(tokens.text) if c.isdigit()]] = 1
        if characters.any():
            until = np.concatenate([[0], np.cumsum(characters)])
            forced |= until[pieces.ends] > until[pieces.starts]
        return forced


@dataclass(frozen=True)
class _Step:
    cancelled: IsCancelled | None

    def __call__(self) -> None:
        if self.cancelled is not None and self.cancelled():
            raise Cancelled


@dataclass(frozen=True, eq=False)
class _Cut:
    tokens: Tokens
    pieces: Pieces
    forced: npt.NDArray[np.bool_]
    separators: Separators

    @cached_property
    def sizes(self) -> npt.NDArray[np.int64]:
        return self.pieces.sizes

    def choose(
        self, scores: npt.NDArray[np.float32], options: PruneOptions, measure: Count
    ) -> npt.NDArray[np.bool_]:
        """[pieces] Which to keep."""
        order = np.argsort(-_means(scores, self.pieces), kind="stable")
        total = len(self.tokens.ids)
        if options.target_tokens is None:
            return self._within(order, math.ceil(options.keep * total))
        most = options.target_tokens
        return self._fitting(order, total, lambda kept: measure(self.text_of(kept)) <= most)

    def _best(self, order: npt.NDArray[np.intp], budget: int) -> npt.NDArray[np.bool_]:
        """The forced pieces, and of the others the best that fit into `budget` tokens."""
        kept = self.forced.copy()
        order = order[~kept[order]]
        room = budget - int(self.sizes[kept].sum())
        sizes = self.sizes[order]
        if (sizes <= 1).all():
            kept[order[: max(room, 0)]] = True
            return self._not_empty(kept, order)
        for piece, size in zip(order.tolist(), sizes.tolist(), strict=True):
            if room <= 0:
                break
            if size <= room:
                kept[piece] = True
                room -= size
        return self._not_empty(kept, order)

    def _not_empty(
        self, kept: npt.NDArray[np.bool_], order: npt.NDArray[np.intp]
    ) -> npt.NDArray[np.bool_]:
        """With the best piece, however large, if nothing would be left: no prompt may be empty."""
        if not kept.any():
            kept[order[:1]] = True
        return kept

    def _within(self, order: npt.NDArray[np.intp], budget: int) -> npt.NDArray[np.bool_]:
        """The best pieces and what separates them, in `budget` tokens of the ranker."""

        def fits(kept: npt.NDArray[np.bool_]) -> bool:
            return int(self.sizes[kept].sum()) <= budget

        kept = self._apart(order, budget)
        return kept if fits(kept) else self._fitting(order, budget - 1, fits)

    def _fitting(
        self,
        order: npt.NDArray[np.intp],
        high: int,
        fits: Callable[[npt.NDArray[np.bool_]], bool],
    ) -> npt.NDArray[np.bool_]:
        """What fits of the largest budget up to `high`, found by halving."""
        found, low = self._apart(order, 0), 0
        while low < high:
            budget = (low + high + 1) // 2
            kept = self._apart(order, budget)
            if fits(kept):
                found, low = kept, budget
            else:
                high = budget - 1
        return found

    def _apart(self, order: npt.NDArray[np.intp], budget: int) -> npt.NDArray[np.bool_]:
        return self.separators.added(self._best(order, budget))

    def text_of(self, kept: npt.NDArray[np.bool_]) -> str:
        bounds = zip(
            self.pieces.starts[kept].tolist(), self.pieces.ends[kept].tolist(), strict=True
        )
        return "".join(self.tokens.text[start:end] for start, end in bounds)

    def result(
        self,
        kept: npt.NDArray[np.bool_],
        left: str,
        scores: npt.NDArray[np.float32] | None,
        before: int,
        after: int,
    ) -> Pruned:
        return Pruned(
            self.tokens.text,
            left,
            self.tokens,
            self.pieces,
            scores,
            kept,
            self.forced,
            before,
            after,
        )


def _means(values: npt.NDArray[np.float32], pieces: Pieces) -> npt.NDArray[np.float64]:
    """[pieces] means of [tokens] values; a piece without tokens has none: 0."""
    sums = np.bincount(pieces.of_token, weights=values, minlength=len(pieces.starts))
    return np.asarray(sums / np.maximum(pieces.sizes, 1))
