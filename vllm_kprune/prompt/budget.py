"""Choose which pieces of a text to keep: the best ones that fit into a budget of tokens.

The paper (LitePruner, section 2, algorithm 1) keeps the k % of tokens with the highest scores. Here
pieces may be larger than a token, some stay in any case (`forced`), and `joints` adds what keeps
words apart. The budget is a bound: what is left is counted, and it is never above.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np

from vllm_kprune.arrays import Booleans, Floats, Integers
from vllm_kprune.options import option
from vllm_kprune.prompt.joints import Joints
from vllm_kprune.prompt.kinds import GAPS
from vllm_kprune.prompt.pieces import TextPieces, Unit
from vllm_kprune.prompt.scorers import DEFAULT_SCORER, SCORERS

__all__ = ["PieceChoice", "PruneOptions"]

_EVERYWHERE = ("request", "server", "command")
_MOST_TOKENS = 10_000_000
_TOKENS = "a number of tokens"
# What is left may be below the budget by the first share of the text; the second is aimed at.
_SLACK, _BELOW, _FEW = 0.02, 0.011, 32
_MOST_COUNTS, _MOST_FITS, _MOST_PASSED = 6, 8, 500


@dataclass(frozen=True)
class PruneOptions:
    """How much of a text to keep, and what stays in any case.

    `keep` is a share of the tokens, and a bound. `target_tokens`, if given, replaces it: at most so
    many tokens stay. `force_tokens` are texts that stay wherever they occur ("\\n", "?").
    `force_first` and `force_last` count tokens. Whatever is forced stays, even beyond the budget. A
    text of fewer than `min_tokens` tokens is not pruned. `scorer` None: the pruner's default.
    """

    keep: float = option(
        1.0,
        "Share of the tokens to keep. 1 or off keeps everything, except in marked spans that name "
        "a share of their own.",
        noun="a share of the tokens",
        above=0,
        most=1,
        words={"off": 1.0},
        default_text="1.0; 0.7 in `kprune prompt` and Python",
        metavar="SHARE",
        forms=_EVERYWHERE,
    )
    target_tokens: int | None = option(
        None,
        "Keep at most this many tokens instead of a share: of each segment in `kprune prompt` and "
        "Python, of all segments together on a server.",
        noun=_TOKENS,
        least=1,
        most=_MOST_TOKENS,
        metavar="N",
        forms=["request", "command"],
    )
    unit: Unit = option(
        "word",
        "What is kept or dropped as a whole. With token, the end of a word may be dropped.",
        forms=_EVERYWHERE,
    )
    prune_layout: bool = option(
        False,
        "Prune code, JSON, tables and lists too. Without it they are left whole.",
        forms=_EVERYWHERE,
    )
    scorer: str | None = option(
        None,
        "What stays: sentences (the default: those that share words with the question; without a "
        "question it is rarity), rarity (rare words), question (rare words, "
        "and more of them near the question's words), attention (what tokens receive in the first "
        "layer, as in the paper) or random.",
        choices=SCORERS,
        default_text=DEFAULT_SCORER,
        forms=_EVERYWHERE,
    )
    force_tokens: tuple[str, ...] = option(
        (),
        "A text that is kept wherever it occurs; there may be several.",
        most=64,
        metavar="TEXT",
        forms={"request": "", "server": "", "command": "force_token"},
    )
    force_digits: bool = option(False, "Keep every token that contains a digit.", forms=_EVERYWHERE)
    force_first: int = option(
        0,
        "Keep this many tokens at the beginning of each segment.",
        noun=_TOKENS,
        least=0,
        most=_MOST_TOKENS,
        forms=["request"],
    )
    force_last: int = option(
        0,
        "Keep this many tokens at the end of each segment.",
        noun=_TOKENS,
        least=0,
        most=_MOST_TOKENS,
        forms=["request"],
    )
    min_tokens: int = option(
        0,
        "Leave requests with fewer tokens to prune as they are; marked spans count as well. auto: "
        "the number from which ranking costs less time than it saves, measured when the server "
        "starts with --plugin kprune; 512 without it.",
        noun=_TOKENS,
        least=0,
        most=_MOST_TOKENS,
        server_words={"auto": None},
        default_text="auto on a server, 0 elsewhere",
        metavar="auto|N",
        forms=["request", "server"],
    )

    def marked(self, keep: float | None) -> "PruneOptions":
        """The options for a marked span: a rate in its mark comes first."""
        # A target would come before the rate, so it has to go.
        return self if keep is None else replace(self, keep=keep, target_tokens=None)

    @property
    def does_nothing(self) -> bool:
        """True if they keep every text whole."""
        return self.keep >= 1 and self.target_tokens is None

    def leaves(self, tokens: int) -> bool:
        """True if a text of so many tokens is not pruned."""
        if tokens < self.min_tokens:
            return True
        if self.target_tokens is not None:
            return tokens <= self.target_tokens
        return self.keep >= 1 or tokens == 0

    def budget(self, tokens: int) -> int:
        """How many of a text's tokens may be left: at least 1, and never above the share.

        >>> PruneOptions(keep=0.56).budget(100), int(0.57 * 100)
        (56, 56)
        """
        if self.target_tokens is not None:
            return min(self.target_tokens, tokens)
        # The share as it was written: 0.57 is a float below 57 / 100.
        return max(1, int(Fraction(repr(float(self.keep))) * tokens))


@dataclass(frozen=True, eq=False)
class PieceChoice:
    """Chooses pieces of one text. `forced`: [pieces] those that stay in any case.

    "Order" below is [pieces] their numbers, the most important first, without blanks.
    """

    pieces: TextPieces
    forced: Booleans
    joints: Joints

    def choose(
        self, scores: Floats, budget: int, total: int, count: Callable[[str], int]
    ) -> tuple[Booleans, str, int]:
        """[pieces] those to keep, by [pieces] `scores`; what is left; and its number of tokens.

        At most `budget` of the text's `total` tokens are left, as `count` counts them, unless more
        is forced or no piece is as small. Counting takes as long as all the rest, so sizes before
        pruning say what will fit, and the count corrects them: mostly one is enough.
        """
        order = self._order(scores)
        per_size = total / max(int(self.pieces.sizes.sum()), 1)
        slack = max(1, int(total * _SLACK) - 1)  # 1: the budget itself is rounded down
        below = total * _BELOW
        best: tuple[Booleans, str, int] | None = None
        # Below the budget, because words cost more tokens beside other neighbours, and one count
        # more takes longer than what that loses.
        few = budget < _FEW  # a share of few tokens is less than one
        aim, more = (budget, 1.0) if few else (budget - below, 0.97)
        for tried in range(_MOST_COUNTS):
            kept, more = self._fitting(order, aim / per_size, more)
            left = self.joints.text(kept)
            used = count(left)
            if used <= budget and (best is None or used > best[2]):
                best = kept, left, used
            near = used >= budget - slack
            if (used <= budget and (near or kept.all())) or aim <= 0:
                break
            if best is None and tried > 1:
                aim /= 2  # the text is nothing like its sizes
            else:
                aim += budget - below / 2 - used
        return best or (kept, left, used)

    @property
    def everything(self) -> Booleans:
        """[pieces] All of them."""
        return np.ones(len(self.pieces.starts), dtype=bool)

    def _order(self, scores: Floats) -> Integers:
        if self.pieces.continues.any():
            scores = scores.copy()
            # Never the end of a word without its beginning: no part ranks above the one before it.
            for n in np.flatnonzero(self.pieces.continues).tolist():
                scores[n] = min(scores[n], scores[n - 1])
        # Stable: of equal scores the earlier piece comes first, on every machine.
        order = np.argsort(-scores, kind="stable")
        return np.asarray(order[~(self.pieces.are(GAPS) | self.forced)[order]])

    def _fitting(self, order: Integers, most: float, more: float) -> tuple[Booleans, float]:
        """The best pieces, and what joins them, in about `most` tokens of the ranker.

        What joins pieces comes on top, and marks are lost with their words, so `more` times `most`
        is tried first; the second result is what it should have been.
        """
        found: tuple[Booleans, float, float] | None = None
        room, low, high = most * more, (0.0, 0.0), (math.inf, 0.0)
        for _ in range(_MOST_FITS):
            kept = self.joints.joined(self._best(order, room), self.forced)
            if not kept.any():
                kept[order[:1]] = True  # a mark alone, which has lost its words
            size = self.joints.size(kept)
            if size <= most and (found is None or size > found[1]):
                found = kept, size, room
            if size <= most:
                low = room, size
            else:
                high = room, size
            near = size > most * 0.997 - 1
            if (size <= most and (near or kept.all())) or high[0] - low[0] < 1:
                break
            if math.isinf(high[0]):
                room += most - size
            else:
                # The line through the nearest rooms, one that fits and one that does not.
                part = (most - low[1]) / max(high[1] - low[1], 1e-9)
                room = low[0] + min(max(part, 0.1), 0.95) * (high[0] - low[0])
        if found is None:
            return kept, more
        return found[0], found[2] / most if most > 0 else more

    def _best(self, order: Integers, most: float) -> Booleans:
        """The forced pieces, and the best of the others that fit into `most` tokens."""
        kept = self.forced.copy()
        sizes = self.pieces.sizes
        room = most - int(sizes[kept].sum())  # negative if more is forced than there is room for
        filled = int(np.searchsorted(np.cumsum(sizes[order]), room, side="right"))
        kept[order[:filled]] = True
        room -= int(sizes[order[:filled]].sum())
        # Pieces that are too large for the room are passed over.
        rest = order[filled : filled + _MOST_PASSED]
        rest = rest[sizes[rest] <= room]
        for n, size in zip(rest.tolist(), sizes[rest].tolist(), strict=True):
            if room <= 0:
                break
            if size <= room:
                kept[n] = True
                room -= size
        for n in np.flatnonzero(self.pieces.continues).tolist():
            kept[n] &= kept[n - 1] | self.forced[n]
        if not kept.any():  # no prompt may become empty: its best piece stays, however large
            kept[order[:1]] = True
        return kept
