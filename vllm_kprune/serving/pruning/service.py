"""The input pruner of a server or an `LLM`: loaded once, asked for every prompt.

Without `--kprune-input-pruner` it only removes <kprune> marks, which every server with kprune does.
If ranking fails, the failure is counted and logged and the prompt is sent unpruned, unless the
request is strict: a pruner makes answers faster, it must not lose any.
"""

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from vllm_kprune.errors import KPruneError
from vllm_kprune.prompt.cache import SegmentCache
from vllm_kprune.prompt.part_encoder import PartEncoder
from vllm_kprune.prompt.segments import MarkError, RequestTexts, SplitRequest
from vllm_kprune.prompt.tokens import CountTokens, control_tokens
from vllm_kprune.serving.compat import logger
from vllm_kprune.serving.compat import prompts as compat_prompt
from vllm_kprune.serving.pruning.job import PrunedRequest, PruneJob, ScorerUnavailable
from vllm_kprune.serving.pruning.metrics import current_report, prune_metrics
from vllm_kprune.serving.pruning.ranker import Ranker, load_ranker, target_tokenizer
from vllm_kprune.serving.pruning.settings import (
    UNMEASURED_MIN_TOKENS,
    PrunerSettings,
    RequestOptions,
    request_options,
)
from vllm_kprune.serving.pruning.worker import Busy, Worker
from vllm_kprune.serving.settings import settings_of

__all__ = [
    "Prepared",
    "PromptPruning",
    "make_pruning",
    "split_at_marks",
]

_LOG_EVERY_SECONDS = 60.0
# The longest prompt that is pruned: so many times the model's context, or so many tokens.
_MOST_CONTEXTS = 4
_LEAST_MAX_TOKENS = 32768


@dataclass(frozen=True)
class Prepared:
    """The texts to render in place of those that were sent. `pruned` is None if no job ran."""

    texts: Sequence[RequestTexts]
    pruned: PrunedRequest | None = None


class PromptPruning:
    """Prunes prompts as the server's settings and the options of each request say."""

    def __init__(
        self,
        settings: PrunerSettings | None,
        ranker: Ranker | None = None,
        count: CountTokens | None = None,
        max_tokens: int = _LEAST_MAX_TOKENS,
    ) -> None:
        """`count` counts tokens as the target does; without it the ranker's tokens are counted.

        A request with more than `max_tokens` tokens to prune is not pruned.
        """
        self.settings = settings
        self.ranker = ranker
        self.min_tokens = UNMEASURED_MIN_TOKENS
        if settings and settings.min_tokens is not None:
            self.min_tokens = settings.min_tokens
        self.cache = SegmentCache(settings.cache_bytes if settings else 0)
        self.max_tokens = max_tokens
        self.target_count = count
        # Name of an exception's class -> when it was last logged, by the monotonic clock.
        self._last_logged: dict[str, float] = {}

    @cached_property
    def worker(self) -> Worker:
        """The ranking thread, started when it is first needed."""
        assert self.settings
        return Worker(self.settings.threads)

    async def prune(
        self,
        texts: Sequence[RequestTexts],
        extra_args: Mapping[str, Any],
        salt: str | None = None,
    ) -> Prepared:
        """Return what to render; `salt` is the request's `cache_salt`.

        Raises `KPruneError` for bad options and malformed marks.
        """
        job = self._begin(texts, extra_args, salt)
        if isinstance(job, Prepared):
            return job
        assert self.settings
        job.most_seconds = self.settings.seconds
        try:
            pruned = await self.worker.run(job, job.expected_seconds)
        # The client is gone. It is no `Exception`, so the next clauses would not see it.
        except asyncio.CancelledError:
            prune_metrics().count("cancelled")
            raise
        except ScorerUnavailable:
            raise
        except Exception as error:
            return self._failed(error, job)
        return self._done(pruned)

    def prune_blocking(
        self,
        texts: Sequence[RequestTexts],
        extra_args: Mapping[str, Any],
        salt: str | None = None,
    ) -> Prepared:
        """Do the same outside an event loop, where nobody else waits: whatever it costs."""
        job = self._begin(texts, extra_args, salt)
        if isinstance(job, Prepared):
            return job
        try:
            pruned = self.worker.run_blocking(job)
        except ScorerUnavailable:
            raise
        except Exception as error:
            return self._failed(error, job)
        return self._done(pruned)

    def job(self, requests: Sequence[SplitRequest], asked: RequestOptions) -> PruneJob:
        """The job that the worker runs for a request."""
        assert self.settings and self.ranker
        least = self.min_tokens if asked.min_tokens is None else asked.min_tokens
        pruner, most, window = self.ranker.pruner, self.max_tokens, self.settings.window
        count = self.target_count
        return PruneJob(requests, asked, least, most, pruner, self.cache, count, window=window)

    def count(self, text: str) -> int:
        """The number of tokens of `text`, as the target counts them."""
        if self.target_count:
            return self.target_count(text)
        assert self.ranker
        return len(self.ranker.pruner.tokenize(text).ids)

    def rendered(self, prepared: Prepared, seen: int) -> None:
        """Report to metrics and headers that the prompts were rendered to `seen` tokens."""
        pruned = prepared.pruned if prepared.pruned and not prepared.pruned.skipped else None
        if pruned:
            prune_metrics().rendered(seen, pruned)
        if self.settings and (report := current_report.get()):
            report.add(seen, pruned)

    def _begin(
        self, texts: Sequence[RequestTexts], extra_args: Mapping[str, Any], salt: str | None
    ) -> PruneJob | Prepared:
        """The job of a request, or its texts without marks if there is nothing to prune."""
        asked = request_options(self.settings, extra_args)
        requests = split_at_marks(texts, asked)
        # After the marks were removed and their mistakes found: both happen even where pruning is
        # off.
        if asked.off or not requests:
            return _unpruned(requests)
        job = self.job(requests, asked)
        job.salt = salt
        if job.wanted:
            return job
        if not asked.request.options.does_nothing:
            prune_metrics().count("skipped", "nothing_to_prune")
        return _unpruned(requests)

    def _done(self, pruned: PrunedRequest) -> Prepared:
        prune_metrics().done(pruned)
        return Prepared(pruned.texts, pruned)

    def _failed(self, error: Exception, job: PruneJob) -> Prepared:
        busy = isinstance(error, Busy)
        prune_metrics().count("failed", "busy" if busy else "error")
        reason = f"{type(error).__name__}: {error}"
        if self._should_log(type(error).__name__):
            logger.warning("kprune: a prompt could not be pruned: %s", reason, exc_info=not busy)
        if job.asked.request.strict:
            if isinstance(error, KPruneError):
                raise error
            # Other errors may name local paths. Those are for the log, not for the client.
            public = str(error) if busy else type(error).__name__
            raise compat_prompt.server_error(f"input pruning failed: {public}", busy=busy)
        return _unpruned(job.requests)

    def _should_log(self, kind: str) -> bool:
        """True if nothing of this kind was logged in the last minute."""
        now = time.monotonic()
        if now - self._last_logged.get(kind, -_LOG_EVERY_SECONDS) < _LOG_EVERY_SECONDS:
            return False
        self._last_logged[kind] = now
        return True


def split_at_marks(texts: Sequence[RequestTexts], asked: RequestOptions) -> list[SplitRequest]:
    """Split the texts of a request at their marks: once, before anything else is done with them.

    Raises `MarkError` for malformed marks, which is the client's mistake even if nothing is pruned,
    and for a rate in a mark where the server's pruner is fixed.
    """
    request = asked.request
    split = [one.split(request.roles, marks=request.marks) for one in texts]
    if asked.fixed and any(segment.keep is not None for one in split for segment in one.prunable()):
        raise MarkError('this server\'s input pruner is fixed; write <kprune>, without keep="…"')
    return split


def make_pruning(renderer: Any) -> PromptPruning:
    """What prunes the prompts of a vLLM renderer. Its ranker is loaded, if there is one."""
    config = renderer.config
    settings = settings_of(config).pruner
    if settings is None:
        return PromptPruning(None)
    model = config.model_config
    ranker = load_ranker(settings, model.model, model.revision, base=model.model_weights)
    # More than one context: a prompt that is too long for the model may fit after pruning.
    most = max(_LEAST_MAX_TOKENS, _MOST_CONTEXTS * model.max_model_len)
    target = target_tokenizer(renderer, ranker)
    count = None
    if target is not None:
        # What is a control token for the target may be plain text to another ranker.
        ranker = replace(ranker, pruner=ranker.pruner.protecting(control_tokens(target)))
        count = PartEncoder(target).count
    ranker.pruner.warm()
    pruning = PromptPruning(settings, ranker, count, most)
    logger.info(
        "kprune: input pruner ready: ranker %s, keep %g, scorer %s; requests with fewer than %d "
        "tokens to prune are not pruned%s",
        ranker.name,
        settings.default.options.keep,
        ranker.pruner.default_scorer,
        pruning.min_tokens,
        "" if settings.min_tokens is not None else " unless the break-even is measured",
    )
    return pruning


def _unpruned(requests: Sequence[SplitRequest]) -> Prepared:
    return Prepared([one.without_marks() for one in requests])
