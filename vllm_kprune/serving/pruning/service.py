"""The input pruner of a server or an `LLM`: loaded once, asked for every prompt.

Without `--kprune-input-pruner` it only removes <kprune> marks, which every server with kprune does.
If ranking fails, the failure is counted and logged and the prompt is sent unpruned, unless the
request is strict: a pruner makes answers faster, it must not lose any.
"""

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from vllm_kprune.checkpoint.manifest import is_overlay, load_manifest
from vllm_kprune.checkpoint.model_folder import resolve_model
from vllm_kprune.errors import KPruneError
from vllm_kprune.prompt.cache import SegmentCache
from vllm_kprune.prompt.layer_config import Precision
from vllm_kprune.prompt.part_encoder import PartEncoder
from vllm_kprune.prompt.scorers import DEFAULT_SCORER
from vllm_kprune.prompt.segments import MarkError, RequestTexts, SplitRequest
from vllm_kprune.prompt.text_pruner import TextPruner
from vllm_kprune.prompt.tokens import CountTokens, control_tokens
from vllm_kprune.serving.compat import logger
from vllm_kprune.serving.compat import prompts as compat_prompt
from vllm_kprune.serving.pruning.job import PrunedRequest, PruneJob, ScorerUnavailable
from vllm_kprune.serving.pruning.metrics import current_report, prune_metrics
from vllm_kprune.serving.pruning.options import SELF
from vllm_kprune.serving.pruning.settings import (
    UNMEASURED_MIN_TOKENS,
    PrunerSettings,
    RequestOptions,
    request_options,
)
from vllm_kprune.serving.pruning.worker import Busy, Worker
from vllm_kprune.serving.settings import settings_of
from vllm_kprune.storage.digest import sha256_file

__all__ = [
    "Prepared",
    "PromptPruning",
    "Ranker",
    "load_ranker",
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


@dataclass(frozen=True, eq=False)
class Ranker:
    """A loaded pruner, its public name, and its folder."""

    name: str
    folder: Path
    pruner: TextPruner


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
    target = _target_tokenizer(renderer, ranker)
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


def load_ranker(
    settings: PrunerSettings, model: str, revision: str | None = None, *, base: str | None = None
) -> Ranker:
    """Load the ranker of a server of `model`. Raises `KPruneError` if it cannot rank.

    `base` is where an overlay's base model is. If the base was moved, the overlay still names the
    old place, so the base itself ranks, as any model with another vocabulary would.
    """
    own = settings.ranker == SELF
    try:
        # `revision` is the served model's; another ranker has its own history.
        folder = resolve_model(model, revision) if own else resolve_model(settings.ranker)
        if own and base and is_overlay(folder) and base != load_manifest(folder).base.path:
            folder = Path(base)
        pruner = _pruner(
            folder,
            settings.default.options.scorer or DEFAULT_SCORER,
            settings.window,
            settings.precision,
        )
    except KPruneError as error:
        raise KPruneError(f"--kprune-input-pruner {settings.ranker}: {error}") from None
    return Ranker(SELF if own else _public_name(settings.ranker), folder, pruner)


@lru_cache(maxsize=1)
def _pruner(folder: Path, scorer: str, window: int | None, precision: Precision) -> TextPruner:
    """Cached, because a server checks its options first and loads the pruner again later."""
    return TextPruner.from_pretrained(folder, scorer=scorer, window=window, precision=precision)


def _public_name(reference: str) -> str:
    """A hub id, or the last part of a local folder."""
    is_folder = Path(reference).expanduser().is_dir()
    return Path(reference).expanduser().resolve().name if is_folder else reference


def _target_tokenizer(renderer: Any, ranker: Ranker) -> Tokenizer | None:
    """The served model's tokenizer; None if the ranker has the same."""
    # A hub id is no folder here: then the tokenizer is copied, which counts the same.
    served = Path(renderer.model_config.tokenizer) / "tokenizer.json"
    own = ranker.folder / "tokenizer.json"
    if served.is_file() and sha256_file(served) == sha256_file(own):
        return None
    tokenizer = compat_prompt.target_tokenizer(renderer)
    if tokenizer is None:
        logger.warning(
            "kprune: the served model's tokenizer cannot be copied; the ranker's tokenizer counts "
            "the tokens of pruned segments instead"
        )
    return tokenizer


def _unpruned(requests: Sequence[SplitRequest]) -> Prepared:
    return Prepared([one.without_marks() for one in requests])
