"""Which rows of the LM head an engine computes, from its options."""

from collections.abc import Mapping, Sequence
from typing import Any

from vllm_kprune.checkpoint.head import HeadRows, head_rows
from vllm_kprune.errors import KPruneError, shown
from vllm_kprune.options import listed
from vllm_kprune.profile import load_profile
from vllm_kprune.progress import Progress, silent
from vllm_kprune.serving.options import VocabularyOptions
from vllm_kprune.serving.request_options import HEAD_KEY

__all__ = ["check_choice", "check_head", "resolve_draft_rows", "resolve_rows"]

# Formats of vLLM that load whole tensors by name. Others have sharded or packed them already.
_FORMATS = ("auto", "safetensors", "fastsafetensors", "runai_streamer", "dummy")


def check_head(engine_args: Any) -> None:
    """Raise `KPruneError` for engine arguments that do not go with a pruned head."""
    if engine_args.load_format not in _FORMATS:
        raise KPruneError(
            f"--load-format {engine_args.load_format} does not go with --kprune-head; expected "
            f"{', '.join(_FORMATS)}"
        )
    if engine_args.tokenizer not in (None, engine_args.model):
        raise KPruneError(
            f"--tokenizer {engine_args.tokenizer} does not go with --kprune-head, which reads the "
            "model's own tokenizer; leave the option out"
        )
    if getattr(engine_args, "enable_batch_sharded_sampling", False):
        raise KPruneError(
            "--enable-batch-sharded-sampling does not go with --kprune-head: each rank would "
            "sample from the rows that it has; leave the option out"
        )


def check_choice(rows: HeadRows | None, extra_args: Mapping[str, Any] | None) -> None:
    """Raise `KPruneError` for a request that chooses a profile which the head does not have."""
    name = (extra_args or {}).get(HEAD_KEY)
    if name is None:
        return
    if rows is None:
        raise KPruneError(
            f"vllm_xargs: {HEAD_KEY}: this server's LM head is not pruned; leave the option out, "
            "or serve with --kprune-head"
        )
    if name not in rows.profiles:
        raise KPruneError(
            f"vllm_xargs: {HEAD_KEY}: got {shown(name)}, this server has "
            f"{listed(rows.profiles, 'and')}"
        )


def resolve_rows(
    options: VocabularyOptions, model: str, revision: str | None, progress: Progress = silent
) -> HeadRows:
    """The rows that `--kprune-head` keeps; what its profiles keep is remembered in the cache."""
    return _resolve(options.head, options, model, revision, progress)


def resolve_draft_rows(
    options: VocabularyOptions, model: str, revision: str | None, progress: Progress = silent
) -> HeadRows:
    """The rows that `--kprune-draft-head` keeps: ids of the target, which its drafter has, too."""
    assert options.draft_head is not None
    return _resolve((options.draft_head,), options, model, revision, progress)


def _resolve(
    names: Sequence[str],
    options: VocabularyOptions,
    model: str,
    revision: str | None,
    progress: Progress,
) -> HeadRows:
    """Sizes and corpora are for the profiles that select tokens; one of several may keep all."""
    profiles = [load_profile(name) for name in names]
    selects_some = not all(profile.keeps_everything for profile in profiles)
    profiles = [
        profile
        if profile.keeps_everything and selects_some
        else load_profile(name, **options.one_sizing("--kprune-"))
        for name, profile in zip(names, profiles, strict=True)
    ]
    return head_rows(model, profiles, revision=revision, corpora=options.corpora, progress=progress)
