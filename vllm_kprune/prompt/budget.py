"""Choose which pieces of a text to keep: the best ones that fit into a budget of tokens.

The paper (LitePruner, section 2, algorithm 1) keeps the k % of tokens with the highest scores. Here
pieces may be larger than a token, some stay in any case (`forced`), and `separators` adds what
keeps words and numbers apart. So the budget of the best pieces is lowered until everything fits.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

from vllm_kprune.arrays import Booleans
from vllm_kprune.options import option
from vllm_kprune.prompt.pieces import TextPieces, Unit
from vllm_kprune.prompt.scorers import DEFAULT_SCORER, SCORERS
from vllm_kprune.prompt.separators import Separators

__all__ = ["PieceChoice", "PruneOptions"]

_EVERYWHERE = ("request", "server", "command")
_MOST_TOKENS = 10_000_000
_TOKENS = "a number of tokens"


@dataclass(frozen=True)
class PruneOptions:
    """How much of a text to keep, and what stays in any case.

    `keep` is a share of the ranker's tokens. `target_tokens`, if given, replaces it: at most so
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
    unit: Unit = option("token", "What is kept or dropped as a whole.", forms=_EVERYWHERE)
    scorer: str | None = option(
        None,
        f"How tokens are ranked: {DEFAULT_SCORER} (the default: rare words stay), question (the "
        "same, and what shares words with the question stays too), attention (what tokens receive "
        "in the first layer, as in the paper) or random.",
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


@dataclass(frozen=True, eq=False)
class PieceChoice:
    """Chooses pieces of one text. `forced`: [pieces] those that stay in any case.

    "Order" below is [pieces] their numbers, the most important first.
    """

    pieces: TextPieces
    forced: Booleans
    separators: Separators

    def choose(
        self,
        scores: npt.NDArray[np.float32],
        options: PruneOptions,
        count_kept: Callable[[Booleans], int],
    ) -> Booleans:
        """[pieces] Which pieces to keep, by [tokens] `scores`.

        `count_kept` counts the tokens of what is left, as the target does. It is asked only for
        `target_tokens`; a share is one of the ranker's tokens.
        """
        # Stable: of equal scores the earlier piece comes first, on every machine.
        order = np.argsort(-self.pieces.means(scores), kind="stable")
        total = len(self.pieces.of_token)
        most = options.target_tokens
        if most is not None:
            return self._largest_fitting(order, total, lambda kept: count_kept(kept) <= most)
        # Rounding of floats: 0.07 * 100 is 7.000000000000001, so 8 tokens may stay, not 7.
        return self._within(order, math.ceil(options.keep * total))

    @property
    def everything(self) -> Booleans:
        """[pieces] All of them."""
        return np.ones(len(self.pieces.starts), dtype=bool)

    @cached_property
    def _sizes(self) -> npt.NDArray[np.int64]:
        return self.pieces.sizes

    def _within(self, order: npt.NDArray[np.intp], budget: int) -> Booleans:
        """The best pieces and their separators, in `budget` tokens of the ranker."""

        def fits(kept: Booleans) -> bool:
            return int(self._sizes[kept].sum()) <= budget

        kept = self._separated(order, budget)
        # The whole budget was tried just now, hence - 1.
        return kept if fits(kept) else self._largest_fitting(order, budget - 1, fits)

    def _largest_fitting(
        self, order: npt.NDArray[np.intp], high: int, fits: Callable[[Booleans], bool]
    ) -> Booleans:
        """The pieces of the largest budget up to `high` that fits, found by bisection.

        Whether a budget fits is nearly, not strictly, monotonic: one more word may need one
        separator less. Then a smaller budget that fits is found, which is good enough.
        """
        # Budget 0 is what is forced, or a single piece: it is the answer even if it does not fit.
        found, low = self._separated(order, 0), 0
        while low < high:
            # + 1 rounds up. Otherwise low = 4, high = 5 would try 4 for ever.
            budget = (low + high + 1) // 2
            kept = self._separated(order, budget)
            if fits(kept):
                found, low = kept, budget
            else:
                high = budget - 1
        return found

    def _separated(self, order: npt.NDArray[np.intp], budget: int) -> Booleans:
        return self.separators.added(self._best(order, budget))

    def _best(self, order: npt.NDArray[np.intp], budget: int) -> Booleans:
        """The forced pieces, and the best of the others that fit into `budget` tokens."""
        kept = self.forced.copy()
        order = order[~kept[order]]
        # Negative if more is forced than the budget has.
        room = budget - int(self._sizes[kept].sum())
        sizes = self._sizes[order]
        # The usual case, tokens: none is too large for the room that is left, so a slice will do.
        if (sizes <= 1).all():
            kept[order[: max(room, 0)]] = True
        else:
            _fill(kept, order, sizes, room)
        if not kept.any():  # no prompt may become empty: its best piece stays, however large
            kept[order[:1]] = True
        return kept


def _fill(
    kept: Booleans, order: npt.NDArray[np.intp], sizes: npt.NDArray[np.int64], room: int
) -> None:
    """Keep pieces in order while there is room, passing over those that are too large for it."""
    for piece, size in zip(order.tolist(), sizes.tolist(), strict=True):
        if room <= 0:
            break
        if size <= room:
            kept[piece] = True
            room -= size
