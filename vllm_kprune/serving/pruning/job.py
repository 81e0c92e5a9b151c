"""Prune the texts of one request: what a ranking thread does, and can be told to stop.

Each segment is pruned by itself, from its own text and the options alone. So a segment gives the
same tokens in every request, and vLLM's prefix cache still finds them.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial

from vllm_kprune.errors import KPruneError
from vllm_kprune.prompt.budget import PruneOptions
from vllm_kprune.prompt.cache import CachedSegment, SegmentCache
from vllm_kprune.prompt.result import PrunedSegment
from vllm_kprune.prompt.scorers import Scorer
from vllm_kprune.prompt.segments import RequestTexts, Segment, SplitRequest
from vllm_kprune.prompt.text_pruner import TextPruner
from vllm_kprune.prompt.tokens import Cancelled, CountTokens, IsCancelled, Tokens
from vllm_kprune.serving.compat import logger
from vllm_kprune.serving.pruning.cost import ranking_seconds
from vllm_kprune.serving.pruning.settings import RequestOptions

__all__ = ["PruneJob", "PrunedRequest", "ScorerUnavailable"]

# On average over a request. A text whose tokens are longer is not language.
_MOST_CHARACTERS_PER_TOKEN = 16
# (text of a segment, its options, the question or None) -> what is left of the text
PruneSegment = Callable[[str, PruneOptions, str | None], str]


class ScorerUnavailable(KPruneError):
    """The request names a scorer that this server's ranker cannot have."""


@dataclass(frozen=True)
class PrunedRequest:
    """The texts of a request after its job, and what the job did.

    Tokens are the target model's. `segments` counts those that were shortened, `hits` and `misses`
    look-ups in the cache. `layouts` counts segments that were left whole for their layout, by what
    they are. `skipped` says why nothing was pruned, or is None: `below_break_even`, `too_long` or
    `too_costly`.
    """

    texts: Sequence[RequestTexts]
    tokens_before: int = 0
    tokens_after: int = 0
    segments: int = 0
    hits: int = 0
    misses: int = 0
    layouts: Mapping[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    skipped: str | None = None

    @property
    def dropped(self) -> int:
        """Tokens that the model does not have to read."""
        return self.tokens_before - self.tokens_after


@dataclass
class PruneJob:
    """One request: its texts, split at their marks, its options, and what prunes them.

    `count` counts tokens as the target does; None if that is as the ranker does.

    Nothing is pruned below `min_tokens`, where it would not pay, or where it would keep all other
    requests waiting: above `max_tokens`, or if ranking would take longer than `most_seconds`.
    Segments of requests with another `salt` are not looked up in the cache, because the time of a
    hit would tell that somebody else sent the same text.
    """

    requests: Sequence[SplitRequest]
    asked: RequestOptions
    min_tokens: int
    max_tokens: int
    pruner: TextPruner
    cache: SegmentCache
    count: CountTokens | None
    most_seconds: float = math.inf
    window: int | None = None
    salt: str | None = None
    _sizes: dict[str, int] = field(default_factory=dict)
    _tokens: dict[str, Tokens] = field(default_factory=dict)

    def __call__(self, cancelled: IsCancelled) -> PrunedRequest:
        """Prune. Raises `Cancelled` once `cancelled`, which is asked now and then, is true."""
        started = time.perf_counter()
        if reason := self.unfit():
            return PrunedRequest([one.without_marks() for one in self.requests], skipped=reason)
        tally = _Tally()
        texts = self.walk(partial(self._segment, tally, cancelled))
        return PrunedRequest(texts, **vars(tally), seconds=time.perf_counter() - started)

    def unfit(self) -> str | None:
        """Why these texts are not pruned; None if they are."""
        wanted = [text for text, _ in self.wanted]
        # With 32,768 tokens at most, this is 524,288 characters.
        if sum(map(len, wanted)) > _MOST_CHARACTERS_PER_TOKEN * self.max_tokens:
            return "too_long"  # decided by length, because counting tokens would take long as well
        tokens = sum(map(self.size, wanted))
        if tokens > self.max_tokens:
            return "too_long"
        if tokens < self.min_tokens:
            return "below_break_even"
        is_bounded = math.isfinite(self.most_seconds)
        return "too_costly" if is_bounded and self._ranking_seconds() > self.most_seconds else None

    @property
    def expected_seconds(self) -> float:
        """About how long ranking takes, before any token is counted: four bytes for each."""
        sizes = (len(text.encode(errors="surrogatepass")) // 4 for text, _ in self.wanted)
        return sum(ranking_seconds(size, self._scorer_name, self.window) for size in sizes)

    def walk(self, prune: PruneSegment) -> list[RequestTexts]:
        """The texts with `prune(…)` in place of every segment that is not kept whole."""
        share = self._target_share()
        uses_query, given = self._scorer().uses_query, self.asked.request.query

        def pruned(request: SplitRequest) -> RequestTexts:
            def one(segment: Segment, query: str | None) -> str:
                options = self._options(segment)
                if options is None:
                    return segment.text
                # None for the other scorers, so that a document is found in the cache whatever is
                # asked about it. An empty query says that there is no question.
                asked = (query if given is None else given or None) if uses_query else None
                return prune(segment.text, self._sized(segment.text, options, share), asked)

            return request.replaced(one)

        return [pruned(request) for request in self.requests]

    @cached_property
    def wanted(self) -> list[tuple[str, PruneOptions]]:
        """The texts of the segments that are not kept whole, each with its options."""
        segments = [segment for request in self.requests for segment in request.prunable()]
        found = [(segment.text, self._options(segment)) for segment in segments]
        return [(text, options) for text, options in found if options is not None]

    def size(self, text: str) -> int:
        """Tokens of the target, counted once for each text of the request."""
        if self.count is None:
            return len(self.tokens(text).ids)
        if text not in self._sizes:
            self._sizes[text] = self.count(text)
        return self._sizes[text]

    def tokens(self, text: str) -> Tokens:
        """The ranker's tokens, found once for each text: it takes as long as ranking them."""
        if text not in self._tokens:
            self._tokens[text] = self.pruner.tokenize(text)
        return self._tokens[text]

    def prune(
        self, text: str, options: PruneOptions, query: str | None, cancelled: IsCancelled
    ) -> PrunedSegment:
        """Prune a segment of this request."""
        # What is left is counted once, so it is not remembered.
        count = None if self.count is None else self._counted
        return self.pruner.prune(
            text,
            options,
            query=query,
            count=count,
            tokens=self.tokens(text),
            cancelled=cancelled,
        )

    def _counted(self, text: str) -> int:
        assert self.count
        return self._sizes.get(text) or self.count(text)

    def _ranking_seconds(self) -> float:
        """About how long it takes to rank what is not in the cache."""
        seconds = 0.0

        def add(text: str, options: PruneOptions, query: str | None) -> str:
            nonlocal seconds
            if not self.cache.has(text, self._how(options, query)):
                seconds += ranking_seconds(self.size(text), self._scorer_name, self.window)
            return text

        self.walk(add)
        return seconds

    def _how(self, options: PruneOptions, query: str | None) -> str:
        # Everything that decides what is kept, as text: `options` is a frozen dataclass, whose
        # `repr` has every field. The pruner needs no place in it, because a cache has only one.
        return repr((options, query, self.salt))

    @property
    def _scorer_name(self) -> str:
        return self.asked.request.options.scorer or self.pruner.default_scorer

    def _options(self, segment: Segment) -> PruneOptions | None:
        """How a segment is pruned; None if it is kept whole."""
        options = self.asked.request.options.marked(segment.keep)
        return options if segment.text and not options.does_nothing else None

    def _sized(self, text: str, options: PruneOptions, share: float) -> PruneOptions:
        """The options with this segment's part of `target_tokens`, if the request gives a target.

        A target of 100 for segments of 300 and 100 tokens leaves 75 and 25.
        """
        if options.target_tokens is None:
            return options
        # Rounded down, so that segments together do not exceed the target, but to 1 at least, which
        # is the smallest target there is.
        return replace(options, target_tokens=max(1, int(share * self.size(text))))

    def _target_share(self) -> float:
        """The share of each segment that may stay if all of them together have `target_tokens`."""
        target = self.asked.request.options.target_tokens
        if target is None:
            return 1.0
        # Marked spans with a rate of their own have no target, and do not take from it.
        total = sum(self.size(text) for text, options in self.wanted if options.target_tokens)
        return min(1.0, target / total) if total else 1.0

    def _scorer(self) -> Scorer:
        """The scorer that was asked for. Its own error names the ranker's folder: only logged."""
        name = self.asked.request.options.scorer
        try:
            return self.pruner.scorer(name)
        except KPruneError as error:
            logger.warning("kprune: scorer %s: %s", name, error)
            raise ScorerUnavailable(
                f"scorer {name} is not available with this server's ranker; leave kprune_scorer out"
            ) from None

    def _segment(
        self,
        tally: "_Tally",
        cancelled: IsCancelled,
        text: str,
        options: PruneOptions,
        query: str | None,
    ) -> str:
        # Between segments; inside one, the pruner asks.
        if cancelled():
            raise Cancelled
        how = self._how(options, query)
        found = self.cache.get(text, how)
        tally.hits += found is not None
        tally.misses += found is None
        if found is None:
            pruned = self.prune(text, options, query, cancelled)
            sizes = pruned.tokens_before, pruned.tokens_after
            found = CachedSegment(pruned.text, *sizes, pruned.layout)
            self.cache.put(text, how, found)
        tally.tokens_before += found.tokens_before
        tally.tokens_after += found.tokens_after
        # A bool counts as 0 or 1. A segment that was left whole is not counted.
        tally.segments += found.text != text
        if found.layout:
            tally.layouts[found.layout] = tally.layouts.get(found.layout, 0) + 1
        return found.text


@dataclass
class _Tally:
    """Counts for `PrunedRequest` while a job runs."""

    tokens_before: int = 0
    tokens_after: int = 0
    segments: int = 0
    hits: int = 0
    misses: int = 0
    layouts: dict[str, int] = field(default_factory=dict)
