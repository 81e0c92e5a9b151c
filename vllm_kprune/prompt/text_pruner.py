"""Prune one segment: keep its most important tokens in their order.

This is LitePruner's algorithm 1 (section 2), with pieces for tokens. Text goes in and text comes
out, so the target model may have another tokenizer than the ranker. What is kept is cut out of the
text, never decoded from ids: all that is ever put in is a blank. Marks and chats are not known
here; see `pruner` for the class that users call.
"""

from collections.abc import Callable, Iterable
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Unpack

from tokenizers import Tokenizer

from vllm_kprune.arrays import Booleans, Floats
from vllm_kprune.errors import KPruneError
from vllm_kprune.prompt.budget import PieceChoice, PruneOptions
from vllm_kprune.prompt.cut_text import CutText
from vllm_kprune.prompt.forced import forced_pieces
from vllm_kprune.prompt.joints import Joints
from vllm_kprune.prompt.layout import layout_of
from vllm_kprune.prompt.part_encoder import PartEncoder
from vllm_kprune.prompt.pieces import cut_pieces
from vllm_kprune.prompt.result import PrunedSegment
from vllm_kprune.prompt.scorers import DEFAULT_SCORER, Scorer, ScorerSettings, make_scorer
from vllm_kprune.prompt.tokens import (
    Cancelled,
    ControlTokens,
    CountTokens,
    IsCancelled,
    Tokens,
    control_tokens,
)
from vllm_kprune.tokenizer.encoder import load_encoder

__all__ = ["TextPruner"]

# English, Korean and Chinese, and words of no language, for which the lists of all are looked at.
_SAMPLES = (
    "The river rises in the Alps. It flows into the sea after 1230 km.",
    "강은 알프스에서 시작한다. 1230 km를 흘러 바다로 들어간다.",
    "这条河发源于阿尔卑斯山。它流经1230公里后注入大海。",
    "Qxz vkq jwx zzq xqv.",
    "Щжъ цфх юэъ.",
    "ظغ ضثخ ذظء.",
)


class TextPruner:
    """A tokenizer and its scorers. Several threads may use one object at once."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        make: Callable[[str], Scorer],
        default_scorer: str = DEFAULT_SCORER,
    ) -> None:
        """`make` makes a scorer by name, or raises `KPruneError`; it is called once for a name."""
        self.tokenizer = tokenizer
        self._encoder = PartEncoder(tokenizer)
        self.default_scorer = default_scorer
        self._make = make
        self._scorers: dict[str, Scorer] = {}
        self._lock = Lock()
        self._control = ControlTokens(control_tokens(tokenizer))
        self._failed: dict[str, str] = {}

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        *,
        scorer: str = DEFAULT_SCORER,
        **settings: Unpack[ScorerSettings],
    ) -> "TextPruner":
        """Read `tokenizer.json` from a model's folder, and the weights that the scorer needs.

        Raises `KPruneError` for a folder without tokenizer.json, an unknown scorer, or a model that
        the scorer cannot use.
        """
        folder = Path(folder)
        pruner = cls(
            load_encoder(folder), lambda name: make_scorer(name, folder, **settings), scorer
        )
        pruner.scorer(scorer)
        return pruner

    def scorer(self, name: str | None = None) -> Scorer:
        """The scorer of this name, made on first use."""
        name = name or self.default_scorer
        # The lock also covers the making: two threads must not load the same weights twice.
        with self._lock:
            # A failure is remembered as well, or every request would read the ranker's files again.
            if name in self._failed:
                # A new exception: one that is raised again keeps the frames of every request.
                raise KPruneError(self._failed[name])
            if name not in self._scorers:
                try:
                    self._scorers[name] = self._make(name)
                except KPruneError as error:
                    self._failed[name] = str(error)
                    raise
            return self._scorers[name]

    def warm(self) -> None:
        """Read now what the first texts would wait for: word lists and patterns."""
        options = PruneOptions(keep=0.5)
        for text in _SAMPLES:
            self.prune(text, options, query=text)

    def protecting(self, names: Iterable[str]) -> "TextPruner":
        """A pruner that also keeps control tokens of these names, those of a target model."""
        # A shallow copy: both pruners share tokenizer, lock and scorers, later ones too.
        other = copy(self)
        other._control = ControlTokens(self._control.names | frozenset(names))
        return other

    def tokenize(self, text: str) -> Tokens:
        """The ranker's tokens of `text`, without the special tokens that a prompt begins with."""
        return self._encoder.tokens(text)

    def prune(
        self,
        text: str,
        options: PruneOptions,
        *,
        query: str | None = None,
        count: CountTokens | None = None,
        tokens: Tokens | None = None,
        cancelled: IsCancelled | None = None,
    ) -> PrunedSegment:
        """Drop the least important tokens of `text`.

        `query` is the question, for scorers that use it. `count` counts tokens as the target model
        does. `tokens` are those of the text, if the caller has them. The text is left whole if its
        layout matters (see `layout`), or if dropping would spell a control token that was not there
        before, or make it longer. Raises `Cancelled` once `cancelled`, which is asked between
        steps, is true.
        """
        tokens = tokens or self.tokenize(text)
        # Two counts: limits and reports are in the target's tokens, sizes in the ranker's.
        before = count(text) if count else len(tokens.ids)
        _check(cancelled)
        cut = self._cut(tokens, options)
        layout = None if options.prune_layout else layout_of(text)
        # Ranking is the slow part, so a text that stays whole has no scores.
        if layout or options.leaves(before):
            return cut.result(cut.choice.everything, text, None, before, before, layout)
        budget = options.budget(before)
        passage = CutText(tokens, cut.choice.pieces)
        scorer = self.scorer(options.scorer)
        scores = scorer.scores(passage, query=query, cancelled=cancelled)

        def measure(left: str) -> int:
            _check(cancelled)
            # Counted anew: across a gap, other tokens may arise than those that were kept.
            return (count or self._encoder.count)(left)

        kept, left, after = cut.choice.choose(scores, budget, before, measure)
        # `<start` + `_of_turn>` would open a turn once the text between the two is dropped. And the
        # one word that is left of two can have more tokens than both, at the beginning of a text.
        opens = len(self._control.find(left)) > len(self._control.find(text))
        if opens or after > before:
            kept, left, after = cut.choice.everything, text, before
        return cut.result(kept, left, scores, before, after, budget=budget)

    def _cut(self, tokens: Tokens, options: PruneOptions) -> "_Cut":
        pieces = cut_pieces(tokens.text, tokens.offsets, options.unit)
        forced = forced_pieces(tokens, pieces, options, self._control)
        return _Cut(tokens, PieceChoice(pieces, forced, Joints(pieces)))


def _check(cancelled: IsCancelled | None) -> None:
    if cancelled is not None and cancelled():
        raise Cancelled


@dataclass(frozen=True, eq=False)
class _Cut:
    """A text in pieces, before and after the choice."""

    tokens: Tokens
    choice: PieceChoice

    def result(
        self,
        kept: Booleans,
        left: str,
        scores: Floats | None,
        before: int,
        after: int,
        layout: str | None = None,
        budget: int | None = None,
    ) -> PrunedSegment:
        return PrunedSegment(
            original=self.tokens.text,
            text=left,
            tokens=self.tokens,
            pieces=self.choice.pieces,
            piece_scores=scores,
            piece_kept=kept,
            piece_forced=self.choice.forced,
            tokens_before=before,
            tokens_after=after,
            layout=layout,
            budget=budget,
        )
