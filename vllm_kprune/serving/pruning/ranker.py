"""The model that ranks a server's prompts: which one it is, and how it is loaded, once.

It is the served model itself, or any other one; then the served model's tokenizer counts.
"""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from vllm_kprune.checkpoint.manifest import is_overlay, load_manifest
from vllm_kprune.checkpoint.model_folder import resolve_model
from vllm_kprune.errors import KPruneError
from vllm_kprune.prompt.layer_config import Precision
from vllm_kprune.prompt.scorers import DEFAULT_SCORER
from vllm_kprune.prompt.text_pruner import TextPruner
from vllm_kprune.serving.compat import logger
from vllm_kprune.serving.compat import prompts as compat_prompt
from vllm_kprune.serving.pruning.options import SELF
from vllm_kprune.serving.pruning.settings import PrunerSettings
from vllm_kprune.storage.digest import sha256_file

__all__ = ["Ranker", "load_ranker", "target_tokenizer"]


@dataclass(frozen=True, eq=False)
class Ranker:
    """A loaded pruner, its public name, and its folder."""

    name: str
    folder: Path
    pruner: TextPruner


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


def target_tokenizer(renderer: Any, ranker: Ranker) -> Tokenizer | None:
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
