"""A pruner with a small trained tokenizer, as the serving tests need it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from support.tiny_tokenizers import byte_level_tokenizer
from vllm_kprune.prompt.cache import SegmentCache
from vllm_kprune.prompt.cut_text import CutText
from vllm_kprune.prompt.scorers import Scorer
from vllm_kprune.prompt.segments import RequestTexts
from vllm_kprune.prompt.text_pruner import TextPruner
from vllm_kprune.serving.pruning.job import PruneJob
from vllm_kprune.serving.pruning.ranker import Ranker
from vllm_kprune.serving.pruning.service import PromptPruning, split_at_marks
from vllm_kprune.serving.pruning.settings import PrunerSettings, request_options
from vllm_kprune.serving.settings import resolve_settings

LONG = "the cat sat on the mat, and the other cats sat there too. "


class LengthScores:
    """Long tokens are important. Records what it was asked, and calls `before` first."""

    name = "length"

    def __init__(self, *, uses_query: bool = False) -> None:
        self.uses_query = uses_query
        self.asked: list[tuple[str, str | None]] = []
        self.before: Callable[[Callable[[], bool]], None] = lambda cancelled: None

    def scores(
        self,
        passage: CutText,
        *,
        query: str | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> Any:
        self.asked.append((passage.text, query))
        assert cancelled
        self.before(cancelled)
        lengths = [end - begin for begin, end in passage.tokens.offsets]
        return passage.pieces.means(np.array(lengths, dtype=np.float32))


def pruner_of(scorer: Scorer) -> TextPruner:
    return TextPruner(byte_level_tokenizer(), lambda name: scorer, "length")


def settings_of(**values: Any) -> PrunerSettings:
    """The settings of a server with a pruner. Nothing is too short unless `values` say so."""
    found = resolve_settings({"kprune": {"input_pruner": "self", "min_tokens": 0, **values}}).pruner
    assert found
    return found


def pruning_of(scorer: Scorer, **values: Any) -> PromptPruning:
    """The pruning of a server with these options."""
    ranker = Ranker("tiny", Path("tiny"), pruner_of(scorer))
    return PromptPruning(settings_of(**values), ranker)


def job_of(
    texts: RequestTexts | list[RequestTexts],
    scorer: Scorer,
    /,
    *,
    min_tokens: int = 0,
    max_tokens: int = 1 << 15,
    cache: SegmentCache | None = None,
    **options: Any,
) -> PruneJob:
    """A request's job; `options` are those of its `vllm_xargs`, without their prefix."""
    asked = request_options(
        settings_of(), {f"kprune_{name}": value for name, value in options.items()}
    )
    pruner = pruner_of(scorer)
    return PruneJob(
        split_at_marks(texts if isinstance(texts, list) else [texts], asked),
        asked,
        min_tokens,
        max_tokens,
        pruner,
        SegmentCache(1 << 20) if cache is None else cache,
        None,
    )


def tokens(text: str) -> int:
    """Tokens of a text in the small tokenizer."""
    return len(byte_level_tokenizer().encode(text, add_special_tokens=False).ids)
