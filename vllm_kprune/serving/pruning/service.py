"""The input pruner of a server or an `LLM`: loaded once, asked for every prompt.

Without `--kprune-input-pruner` it only takes <kprune> marks away, which every server with kprune
does. What goes wrong while a prompt is ranked is counted and logged, and the prompt sent unpruned,
unless the request is strict: a pruner makes answers faster, it must not lose any.
"""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from vllm_kprune.checkpoint.manifest import is_overlay, load_manifest
from vllm_kprune.checkpoint.model_folder import resolve_model
from vllm_kprune.errors import KPruneError
from vllm_kprune.prompt.cache import SegmentCache
from vllm_kprune.prompt.layer_config import Precision
from vllm_kprune.prompt.pruner import InputPruner
from vllm_kprune.prompt.scorers import DEFAULT_SCORER
from vllm_kprune.prompt.tokens import control_tokens, encode
from vllm_kprune.serving.compat import logger
from vllm_kprune.serving.compat import prompts as compat_prompt
from vllm_kprune.serving.pruning.job import Outcome, PruneJob, ScorerUnavailable
from vllm_kprune.serving.pruning.metrics import current_report, prune_metrics
from vllm_kprune.serving.pruning.options import SELF
from vllm_kprune.serving.pruning.settings import (
    UNMEASURED_MIN_TOKENS,
    PrunerSettings,
    Wish,
    pruner_settings,
    wish_of,
)
from vllm_kprune.serving.pruning.texts import RequestTexts
from vllm_kprune.serving.pruning.worker import Busy, Worker
from vllm_kprune.storage.digest import sha256_file

__all__ = ["Prepared", "PromptPruning", "Ranker", "load_ranker", "make_pruning"]

_LOG_EVERY_SECONDS = 60.0
# What a prompt may have before pruning, in lengths of the model's context; and at least so much.
_MOST_CONTEXTS = 4
_LEAST_MAX_TOKENS = 32768


@dataclass(frozen=True)
class Prepared:
    """Texts to render instead of those that were sent; `outcome` None if no job ran."""

    texts: Sequence[RequestTexts]
    outcome: Outcome | None = None


@dataclass(frozen=True, eq=False)
class Ranker:
    """A loaded pruner, the name that it is shown by, and its folder."""

    name: str
    folder: Path
    pruner: InputPruner


class PromptPruning:
    """Prunes prompts as the server's settings and each request's wishes say."""

    def __init__(
        self,
        settings: PrunerSettings | None,
        ranker: Ranker | None = None,
        count: Callable[[str], int] | None = None,
        max_tokens: int = _LEAST_MAX_TOKENS,
    ) -> None:
        """`count` counts tokens as the target does; without it, the ranker's are counted.

        Requests with more than `max_tokens` tokens to prune are left alone.
        """
        self.settings = settings
        self.ranker = ranker
        self.min_tokens = UNMEASURED_MIN_TOKENS
        if settings and settings.min_tokens is not None:
            self.min_tokens = settings.min_tokens
        self.cache = SegmentCache(settings.cache_bytes if settings else 0)
        self.max_tokens = max_tokens
        self._count = count
        self._told: dict[str, float] = {}

    @cached_property
    def worker(self) -> Worker:
        """Its thread, started when it is first needed."""
        assert self.settings
        return Worker(self.settings.threads)

    async def prune(self, texts: Sequence[RequestTexts], extra_args: Mapping[str, Any]) -> Prepared:
        """What to render instead. `KPruneError` for bad wishes and malformed marks."""
        wish = wish_of(self.settings, extra_args)
        job = self._wanted_job(texts, wish)
        if job is None:
            return _untouched(texts, wish)
        try:
            outcome = await self.worker.run(job)
        except asyncio.CancelledError:
            prune_metrics().count("cancelled")
            raise
        except ScorerUnavailable:
            raise
        except Exception as error:
            return self._failed(error, texts, wish)
        return self._done(outcome)

    def prune_blocking(
        self, texts: Sequence[RequestTexts], extra_args: Mapping[str, Any]
    ) -> Prepared:
        """The same, outside an event loop."""
        wish = wish_of(self.settings, extra_args)
        job = self._wanted_job(texts, wish)
        if job is None:
            return _untouched(texts, wish)
        try:
            outcome = self.worker.run_blocking(job)
        except ScorerUnavailable:
            raise
        except Exception as error:
            return self._failed(error, texts, wish)
        return self._done(outcome)

    def job(self, texts: Sequence[RequestTexts], wish: Wish) -> PruneJob:
        """What the worker runs for a request."""
        assert self.ranker
        least = self.min_tokens if wish.min_tokens is None else wish.min_tokens
        pruner, most = self.ranker.pruner, self.max_tokens
        return PruneJob(texts, wish, least, most, pruner, self.cache, self.count)

    def count(self, text: str) -> int:
        """Tokens of `text`, as the target counts them."""
        if self._count:
            return self._count(text)
        assert self.ranker
        return len(self.ranker.pruner.tokenize(text).ids)

    def rendered(self, prepared: Prepared, seen: int) -> None:
        """Its prompts were rendered to `seen` tokens: tell the metrics and the headers."""
        outcome = prepared.outcome if prepared.outcome and not prepared.outcome.skipped else None
        if outcome:
            prune_metrics().rendered(seen, outcome)
        if self.settings and (report := current_report.get()):
            report.add(seen, outcome)

    def _wanted_job(self, texts: Sequence[RequestTexts], wish: Wish) -> PruneJob | None:
        """The job, if there is a segment that it would prune; malformed marks are told here."""
        if wish.off or not texts:
            return None
        job = self.job(texts, wish)
        if job.wanted():
            return job
        if not wish.request.options.does_nothing:
            prune_metrics().count("skipped", "nothing_to_prune")
        return None

    def _done(self, outcome: Outcome) -> Prepared:
        prune_metrics().done(outcome)
        return Prepared(outcome.texts, outcome)

    def _failed(self, error: Exception, texts: Sequence[RequestTexts], wish: Wish) -> Prepared:
        busy = isinstance(error, Busy)
        prune_metrics().count("failed", "busy" if busy else "error")
        reason = f"{type(error).__name__}: {error}"
        if self._is_news(type(error).__name__):
            logger.warning("kprune: a prompt could not be pruned: %s", reason, exc_info=not busy)
        if wish.request.strict:
            if isinstance(error, KPruneError):
                raise error
            told = str(error) if busy else type(error).__name__  # the rest is for the log
            raise compat_prompt.server_error(f"input pruning failed: {told}", busy=busy)
        return _untouched(texts, wish)

    def _is_news(self, kind: str) -> bool:
        """Was nothing of this kind logged for a minute?"""
        now = time.monotonic()
        if now - self._told.get(kind, -_LOG_EVERY_SECONDS) < _LOG_EVERY_SECONDS:
            return False
        self._told[kind] = now
        return True


def make_pruning(renderer: Any) -> PromptPruning:
    """What prunes the prompts of a vLLM renderer, with its ranker loaded if there is one."""
    config = renderer.config
    settings = pruner_settings(config.additional_config)
    if settings is None:
        return PromptPruning(None)
    model = config.model_config
    ranker = load_ranker(settings, model.model, model.revision, base=model.model_weights)
    most = max(_LEAST_MAX_TOKENS, _MOST_CONTEXTS * model.max_model_len)
    target = _target_tokenizer(renderer, ranker)
    count = None
    if target is not None:
        ranker = replace(ranker, pruner=ranker.pruner.protecting(control_tokens(target)))
        count = partial(_count, target)
    pruning = PromptPruning(settings, ranker, count, most)
    logger.info(
        "kprune: input pruner ready: %s, keep %g, scorer %s; requests with fewer than %d tokens to "
        "prune are left alone%s",
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
    """Load the ranker of a server of `model`. `KPruneError` if it cannot be one.

    `base`: where an overlay's base is. If that was moved it is the ranker itself, as a model of
    another vocabulary: the overlay names the old place.
    """
    own = settings.ranker == SELF
    try:
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
def _pruner(folder: Path, scorer: str, window: int | None, precision: Precision) -> InputPruner:
    """The last one is kept: a server checks it first, and then uses it."""
    return InputPruner.from_pretrained(folder, scorer=scorer, window=window, precision=precision)


def _public_name(reference: str) -> str:
    """A hub id; of a local folder only its last part."""
    is_folder = Path(reference).expanduser().is_dir()
    return Path(reference).expanduser().resolve().name if is_folder else reference


def _target_tokenizer(renderer: Any, ranker: Ranker) -> Tokenizer | None:
    """The served model's; None if it is the ranker's own."""
    served = Path(renderer.model_config.tokenizer) / "tokenizer.json"
    own = ranker.folder / "tokenizer.json"
    if served.is_file() and sha256_file(served) == sha256_file(own):
        return None
    tokenizer = compat_prompt.target_tokenizer(renderer)
    if tokenizer is None:
        logger.warning("kprune: tokens of pruned segments are counted as the ranker's")
    return tokenizer


def _count(tokenizer: Tokenizer, text: str) -> int:
    return len(encode(tokenizer, text).ids)


def _untouched(texts: Sequence[RequestTexts], wish: Wish) -> Prepared:
    return Prepared([one.without_marks(wish.request) for one in texts])
