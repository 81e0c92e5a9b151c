"""Speculative decoding on a pruned model: only drafts with its own token ids are let through.

EAGLE heads, MTP layers, Medusa and ordinary draft models propose ids of the original vocabulary.
On a pruned model these are other tokens, or lie outside the embedding: nothing is accepted, or the
engine crashes. N-gram and suffix drafts copy ids from the text itself, and a draft model fits that
is pruned to the same tokens.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vllm_kprune.checkpoint.manifest import (
    EXPORT_NAME,
    MANIFEST_NAME,
    Manifest,
    is_export,
    is_overlay,
    load_manifest,
)
from vllm_kprune.checkpoint.model_folder import resolve_model
from vllm_kprune.errors import KPruneError
from vllm_kprune.serving.compat.engine import settle_tied_head
from vllm_kprune.serving.settings import settings_of
from vllm_kprune.tokenizer.bpe import read_tokenizer

__all__ = ["check_drafts", "check_resolved_drafts", "refuse_original_drafts"]

# Methods without token ids of their own. A `custom_class` is the user's own code, which sees the
# pruned configuration.
_COPYING = ("ngram", "[ngram]", "ngram_gpu", "suffix", "extract_hidden_states", "custom_class")
_DRAFT_MODEL = "draft_model"


def refuse_original_drafts(engine_args: Any, profile: str) -> None:
    """Refuse drafts that cannot fit any pruned model, before one is built for `profile`."""
    asked = _asked(engine_args)
    if not _copies(asked):
        _pruned_draft(asked, profile)


def check_drafts(engine_args: Any) -> None:
    """Raise `KPruneError` if the drafts in `EngineArgs` do not fit its model, an overlay."""
    asked = _asked(engine_args)
    if _copies(asked):
        return
    target = Path(engine_args.model)
    served = load_manifest(target)
    draft = _pruned_draft(asked, served.profile.name)
    _check_same_tokens(target, draft, served)
    if is_overlay(draft) and engine_args.load_format != "dummy":
        manifest = load_manifest(draft)
        manifest.check_files(draft)
        manifest.check_base()


def check_resolved_drafts(config: Any) -> None:
    """The same for the `VllmConfig` of an overlay: vLLM has decided on the method by now.

    It may have taken the drafts from the model's own files, or the method from a folder's name.
    """
    speculative = config.speculative_config
    _check_draft_head(config, speculative)
    target = Path(config.model_config.model)
    if speculative is None or not is_overlay(target) or speculative.method in _COPYING:
        return
    served = load_manifest(target)
    asked = {"method": speculative.method, "model": speculative.model}
    draft = _pruned_draft(asked, served.profile.name)
    _check_same_tokens(target, draft, served)
    if is_overlay(draft):
        settle_tied_head(speculative.draft_model_config, Path(load_manifest(draft).base.path))


def _check_draft_head(config: Any, speculative: Any) -> None:
    """Raise `KPruneError` if there is no drafter whose LM head could be pruned."""
    if settings_of(config).vocabulary.draft_head is None:
        return
    if speculative is None:
        raise KPruneError(
            "--kprune-draft-head needs a drafter: give --speculative-config, or leave the option "
            "out"
        )
    if speculative.method in _COPYING:
        raise KPruneError(
            f"--kprune-draft-head: drafts of the method {speculative.method} come from no LM head; "
            "leave the option out"
        )


def _asked(engine_args: Any) -> Mapping[str, Any]:
    """What `EngineArgs` ask of speculative decoding, from any of its options; empty for nothing."""
    given = {
        key.replace("-", "_"): value
        for key, value in (engine_args.speculative_config or {}).items()
    }
    # Abbreviations of `--speculative-config`, which not every vLLM has.
    for key in ("method", "model"):
        value = getattr(engine_args, f"spec_{key}", None)
        given |= {} if value is None else {key: value}
    return given


def _copies(asked: Mapping[str, Any]) -> bool:
    """Are there no drafts, or only such as have no token ids of their own?"""
    method, model = asked.get("method"), asked.get("model")
    if method is None and model is not None:
        # As vLLM infers it: a dotted name is a class of the user's.
        parts = str(model).split(".")
        is_class = len(parts) > 1 and all(part.isidentifier() for part in parts)
        return is_class or model in _COPYING
    return not asked or method in _COPYING


def _pruned_draft(asked: Mapping[str, Any], profile: str) -> Path:
    """The folder of the draft model that was asked for; `KPruneError` if it is not a pruned one."""
    method, model = asked.get("method"), asked.get("model")
    if method not in (None, _DRAFT_MODEL):
        raise KPruneError(
            f"speculative decoding with method {method} does not fit a pruned model: its drafts "
            f"are token ids of the original vocabulary; {_way_out(profile)}"
        )
    draft = resolve_model(str(model), asked.get("revision"), weights=False) if model else None
    if draft is None or not (is_overlay(draft) or is_export(draft)):
        raise KPruneError(
            f"the draft model {model} does not fit a pruned model: it is not pruned itself, so its "
            f"drafts are token ids of the original vocabulary; {_way_out(profile)}"
        )
    return draft


def _check_same_tokens(target: Path, draft: Path, served: Manifest) -> None:
    """Raise `KPruneError` unless each id is the same token in both pruned models."""
    name = MANIFEST_NAME if is_overlay(draft) else EXPORT_NAME
    drafting = load_manifest(draft, name)
    if served.kept_ids != drafting.kept_ids:
        difference = len({*served.kept_ids} ^ {*drafting.kept_ids})
        reason = f"{difference:,} of the kept tokens differ (profile {drafting.profile.name})"
    elif not _same_tokenizer(target, draft, served, drafting):
        reason = "its base model has another tokenizer"
    else:
        return
    raise KPruneError(
        f"the draft model {draft} does not fit the pruned model {target}: {reason}; "
        f"{_way_out(served.profile.name)}"
    )


def _same_tokenizer(target: Path, draft: Path, served: Manifest, drafting: Manifest) -> bool:
    file = "tokenizer.json"
    if served.files.get(file) == drafting.files.get(file):
        return True
    # Two sizes of one model may come with files that differ in a template or in white space only.
    return bool(read_tokenizer(target).tokens == read_tokenizer(draft).tokens)


def _way_out(profile: str) -> str:
    return (
        f"prune the draft model as well (kprune build DRAFT --profile {profile} -o DIR, then "
        '"model": "DIR"), use n-gram drafts ("method": "ngram"), or serve the original model'
    )
