"""Prune the texts of one request: what a ranking thread does, and can stop doing.

Each segment is pruned by itself, from its own text and the options alone: so the same segment gives
the same tokens in every request, and vLLM's prefix cache still finds them.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial

from vllm_kprune.errors import KPruneError
from vllm_kprune.prompt.cache import CachedSegment, SegmentCache
from vllm_kprune.prompt.pruner import InputPruner, PruneOptions
from vllm_kprune.prompt.scorers import Scorer
from vllm_kprune.prompt.tokens import Cancelled, IsCancelled
from vllm_kprune.serving.compat import logger
from vllm_kprune.serving.pruning.settings import Wish
from vllm_kprune.serving.pruning.texts import RequestTexts

__all__ = ["Outcome", "PruneJob", "ScorerUnavailable"]

_MOST_CHARACTERS_OF_TOKEN = 16  # on average; a text of longer ones is not language
Count = Callable[[str], int]
# (segment, its options, what is asked or None) -> what is left of it
PruneSegment = Callable[[str, PruneOptions, str | None], str]


class ScorerUnavailable(KPruneError):
    """The request names a scorer for which the ranker lacks something."""


@dataclass(frozen=True)
class Outcome:
    """What became of a request's texts, in their order.

    Tokens are the target model's. `segments` were shortened; `hits` and `misses` are of the cache.
    `skipped` tells why nothing was done: `below_break_even` or `too_long`.
    """

    texts: Sequence[RequestTexts]
    tokens_before: int = 0
    tokens_after: int = 0
    segments: int = 0
    hits: int = 0
    misses: int = 0
    seconds: float = 0.0
    skipped: str | None = None

    @property
    def dropped(self) -> int:
        """Tokens of the segments that are not sent to the model."""
        return self.tokens_before - self.tokens_after


@dataclass
class PruneJob:
    """One request: its texts, its wish, and what prunes them.

    Nothing is done below `min_tokens`, which would not pay, nor above `max_tokens`, which would
    keep all others waiting.
    """

    texts: Sequence[RequestTexts]
    wish: Wish
    min_tokens: int
    max_tokens: int
    pruner: InputPruner
    cache: SegmentCache
    count: Count
    _sizes: dict[str, int] = field(default_factory=dict)

    def __call__(self, cancelled: IsCancelled) -> Outcome:
        """Prune; `cancelled` is asked now and then, and ends it with an exception."""
        started = time.perf_counter()
        if reason := self.unfit():
            plain = [texts.without_marks(self.wish.request) for texts in self.texts]
            return Outcome(plain, skipped=reason)
        tally = _Tally()
        pruned = self.walk(partial(self._segment, tally, cancelled))
        return Outcome(pruned, **vars(tally), seconds=time.perf_counter() - started)

    def unfit(self) -> str | None:
        """Why these texts are not pruned; None if they are."""
        wanted = [text for text, _ in self.wanted()]
        if sum(map(len, wanted)) > _MOST_CHARACTERS_OF_TOKEN * self.max_tokens:
            return "too_long"  # without counting: that would take long too
        tokens = sum(map(self.size, wanted))
        if tokens > self.max_tokens:
            return "too_long"
        return "below_break_even" if tokens < self.min_tokens else None

    def walk(self, prune: PruneSegment) -> list[RequestTexts]:
        """The texts with every segment that is not kept whole replaced by what `prune` gives."""
        share = self._target_share()
        asks = self._scorer().uses_query

        def pruned(texts: RequestTexts) -> RequestTexts:
            query = texts.query(self.wish.request) if asks else None

            def one(text: str, keep: float | None) -> str:
                options = self.wish.request.options.marked(keep)
                if not text or options.does_nothing:
                    return text
                if options.target_tokens is not None:
                    fitting = max(1, int(share * self.size(text)))
                    options = replace(options, target_tokens=fitting)
                return prune(text, options, query)

            return texts.apply(one, self.wish.request)

        return [pruned(texts) for texts in self.texts]

    def _scorer(self) -> Scorer:
        """The one that was asked for; a ranker may lack what it needs, which its folder tells."""
        name = self.wish.request.options.scorer
        try:
            return self.pruner.scorer(name)
        except KPruneError as error:
            logger.warning("kprune: scorer %s: %s", name, error)
            raise ScorerUnavailable(
                f"scorer {name} is not available with this server's ranker; leave kprune_scorer out"
            ) from None

    def size(self, text: str) -> int:
        """Tokens of the target; the texts of a request are counted once."""
        if text not in self._sizes:
            self._sizes[text] = self.count(text)
        return self._sizes[text]

    def wanted(self) -> list[tuple[str, PruneOptions]]:
        """The segments that are not kept whole, each with its options."""
        return self._wanted

    @cached_property
    def _wanted(self) -> list[tuple[str, PruneOptions]]:
        found: list[tuple[str, PruneOptions]] = []

        def note(text: str, keep: float | None) -> str:
            options = self.wish.request.options.marked(keep)
            if text and not options.does_nothing:
                found.append((text, options))
            return text

        for texts in self.texts:
            texts.apply(note, self.wish.request)
        return found

    def _target_share(self) -> float:
        """Of each segment's tokens, how many are left when all together have `target_tokens`."""
        target = self.wish.request.options.target_tokens
        if target is None:
            return 1.0
        total = sum(self.size(text) for text, options in self.wanted() if options.target_tokens)
        return min(1.0, target / total) if total else 1.0

    def _segment(
        self,
        tally: "_Tally",
        cancelled: IsCancelled,
        text: str,
        options: PruneOptions,
        query: str | None,
    ) -> str:
        if cancelled():
            raise Cancelled
        how = repr((options, query))
        known = self.cache.get(text, how)
        if known is None:
            tally.misses += 1
            done = self.pruner.prune(
                text, options, query=query, count=self.size, cancelled=cancelled
            )
            known = CachedSegment(done.text, done.tokens_before, done.tokens_after)
            self.cache.put(text, how, known)
        else:
            tally.hits += 1
        tally.tokens_before += known.tokens_before
        tally.tokens_after += known.tokens_after
        tally.segments += known.text != text
        return known.text


@dataclass
class _Tally:
    tokens_before: int = 0
    tokens_after: int = 0
    segments: int = 0
    hits: int = 0
    misses: int = 0
