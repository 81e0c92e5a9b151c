"""What is left of a text, a prompt or a chat after pruning, and what was dropped."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from vllm_kprune.prompt.kinds import GAPS
from vllm_kprune.prompt.pieces import TextPieces
from vllm_kprune.prompt.tokens import Tokens

__all__ = ["PrunedMessages", "PrunedPiece", "PrunedPrompt", "PrunedSegment"]


@dataclass(frozen=True)
class PrunedPiece:
    """A part of a text that was kept or dropped as a whole, for display.

    `start` and `end` are character offsets in its segment. `score` is None if nothing was ranked.
    `heat`, from 0 to 1, is the share of the tokens that are at most as important. `kept_from` is
    the lowest keep rate at which the piece stays.
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
class PrunedSegment:
    """A segment and what is left of it.

    `piece_scores`: [pieces] higher is more important; None if nothing had to be ranked.
    `piece_kept`, `piece_forced`: [pieces]. `tokens_before` and `tokens_after` are counted as the
    target does if a count was given, otherwise as the ranker does. `layout`: why the text was left
    whole (`code`, `json`, `table` or `list`), or None. `budget`: the most tokens that may be left;
    None if nothing had to be dropped.
    """

    original: str
    text: str
    tokens: Tokens
    pieces: TextPieces
    piece_scores: npt.NDArray[np.float64] | None
    piece_kept: npt.NDArray[np.bool_]
    piece_forced: npt.NDArray[np.bool_]
    tokens_before: int
    tokens_after: int
    layout: str | None = None
    budget: int | None = None

    @property
    def exceeds(self) -> bool:
        """True if more is left than the options allow: what is forced, or a single large piece."""
        return self.budget is not None and self.tokens_after > self.budget

    @property
    def kept(self) -> npt.NDArray[np.bool_]:
        """[tokens] True for those that were kept."""
        # Indexed by the piece of each token: [pieces] becomes [tokens].
        return self.piece_kept[self.pieces.of_token]

    def list_pieces(self) -> list[PrunedPiece]:
        """The pieces in order, as objects. Slow for long texts, which nobody looks at."""
        starts, ends, sizes = self.pieces.starts, self.pieces.ends, self.pieces.sizes
        scores = self.piece_scores
        heat, kept_from = self._ranks(scores, sizes)
        return [
            PrunedPiece(
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
        self, scores: npt.NDArray[np.float64] | None, sizes: npt.NDArray[np.int64]
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """[pieces] `heat` and `kept_from` of each, see `PrunedPiece`."""
        if scores is None:
            return np.ones(len(sizes)), np.zeros(len(sizes))
        total = max(int(sizes.sum()), 1)
        heat, kept_from = np.empty(len(sizes)), np.empty(len(sizes))
        # Sizes 1, 2, 1: before them are 0, 1 and 3 of 4 tokens, so heat is 1, .75, .25.
        order = np.argsort(-scores, kind="stable")
        heat[order] = 1 - (np.cumsum(sizes[order]) - sizes[order]) / total
        # Forced pieces use up the budget first, so the others come in later than their score says.
        order = order[np.argsort(~self.piece_forced[order], kind="stable")]
        # An estimate: what joins words, and large pieces that are passed over, are not foreseen.
        kept_from[order] = np.cumsum(sizes[order]) / total
        kept_from[self.piece_forced] = 0.0
        # Blanks come with the words beside them.
        blank = np.flatnonzero(self.pieces.are(GAPS))
        for values, best in ((kept_from, np.minimum), (heat, np.maximum)):
            before, after = (
                values[np.maximum(blank - 1, 0)],
                values[np.minimum(blank + 1, len(heat) - 1)],
            )
            values[blank] = best(before, after)
        return heat, kept_from


@dataclass(frozen=True, eq=False)
class PrunedPrompt:
    """A pruned prompt. `parts` in order: strings that were left alone, and pruned segments."""

    parts: Sequence[str | PrunedSegment]

    @property
    def segments(self) -> Sequence[PrunedSegment]:
        """The parts that were pruned."""
        return [part for part in self.parts if isinstance(part, PrunedSegment)]

    @property
    def text(self) -> str:
        """What is left of the prompt, without marks."""
        return "".join(part if isinstance(part, str) else part.text for part in self.parts)

    @property
    def pieces(self) -> list[PrunedPiece]:
        """The pieces of all pruned segments, in order."""
        return [piece for segment in self.segments for piece in segment.list_pieces()]

    @property
    def tokens_before(self) -> int:
        """Tokens of the pruned segments before pruning. Text that was left alone is not counted."""
        return sum(segment.tokens_before for segment in self.segments)

    @property
    def tokens_after(self) -> int:
        """Tokens of the pruned segments after pruning."""
        return sum(segment.tokens_after for segment in self.segments)


@dataclass(frozen=True, eq=False)
class PrunedMessages:
    """A pruned chat: new messages and documents without marks, and the segments pruned in them."""

    messages: Sequence[Mapping[str, Any]]
    documents: Sequence[Mapping[str, Any]] | None
    segments: Sequence[PrunedSegment]

    @property
    def tokens_before(self) -> int:
        """Tokens of the pruned segments before pruning."""
        return sum(segment.tokens_before for segment in self.segments)

    @property
    def tokens_after(self) -> int:
        """Tokens of the pruned segments after pruning."""
        return sum(segment.tokens_after for segment in self.segments)
