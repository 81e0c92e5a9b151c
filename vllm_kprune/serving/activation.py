"""From what the user asked for to engine arguments: the overlay, its base weights, the loader.

Runs where engine arguments become a configuration, before vLLM has read anything of the model. A
model that is not an overlay, without any kprune option, is left exactly as it was.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

from vllm_kprune.checkpoint.manifest import MANIFEST_NAME, Manifest, is_overlay, load_manifest
from vllm_kprune.errors import KPruneError
from vllm_kprune.profile import load_profile
from vllm_kprune.progress import Progress
from vllm_kprune.serving.compat import check_version, logger
from vllm_kprune.serving.drafts import check_drafts, refuse_original_drafts
from vllm_kprune.serving.options import VocabularyOptions
from vllm_kprune.serving.settings import ServerSettings, attach_settings, settings_of

__all__ = ["LOAD_FORMAT", "activate"]

LOAD_FORMAT = "kprune"
# `dummy` (random weights, for measurements) needs no base. Every other format would look for
# weights in the overlay, which has none.
_ACCEPTED_FORMATS = ("auto", LOAD_FORMAT, "dummy")


def activate(engine_args: Any) -> bool:
    """Point vLLM's `EngineArgs` at the pruned model, if one was asked for. Is one active?

    Calling it again is harmless. Raises `KPruneError` before anything is loaded: the overlay was
    edited, the base changed or moved, an option contradicts another, or vLLM is not a tested one.
    """
    settings = settings_of(engine_args)
    overlay = is_overlay(engine_args.model)
    # The second call: `create_engine_config` calls `create_model_config`, and both are wrapped.
    if overlay and engine_args.model_weights:
        return True
    if settings.pruner:
        _check_pruner(engine_args, settings)
    if not overlay and not settings.prunes:
        if engine_args.load_format == LOAD_FORMAT:
            raise KPruneError(_not_an_overlay(engine_args.model, f"--load-format {LOAD_FORMAT}"))
        if settings.given:
            check_version()
        if settings.vocabulary.head or settings.vocabulary.draft_head:
            _prune_heads(engine_args, settings)
        return False
    check_version()
    _refuse_conflicts(engine_args)
    if overlay:
        _serve_overlay(engine_args, settings.vocabulary)
    else:
        _serve_in_one_step(engine_args, settings.vocabulary)
    check_drafts(engine_args)
    return True


def _prune_heads(engine_args: Any, settings: ServerSettings) -> None:
    """Decide which rows of the LM heads are computed; the model itself stays as it is."""
    from vllm_kprune.serving.head.counts import note_profiles
    from vllm_kprune.serving.head.rows import check_head, resolve_draft_rows, resolve_rows

    options, model, revision = settings.vocabulary, engine_args.model, engine_args.revision
    progress = _log_steps("kprune: choosing the tokens of the head, once: %s")
    check_head(engine_args)
    if options.head and settings.head_rows is None:
        settings = replace(settings, head_rows=resolve_rows(options, model, revision, progress))
        assert settings.head_rows
        note_profiles(settings.head_rows)
    if options.draft_head and settings.draft_rows is None:
        rows = resolve_draft_rows(options, model, revision, progress)
        settings = replace(settings, draft_rows=rows)
    attach_settings(engine_args, settings)


def _check_pruner(engine_args: Any, settings: ServerSettings) -> None:
    """Load the ranker, which stays loaded, so that mistakes come before a long build or start."""
    from vllm_kprune.serving.pruning.ranker import load_ranker

    assert settings.pruner
    base = settings.vocabulary.base
    load_ranker(
        settings.pruner,
        engine_args.model,
        engine_args.revision,
        base=None if base is None else str(base),
    )


def _serve_overlay(engine_args: Any, options: VocabularyOptions) -> None:
    folder = Path(engine_args.model)
    manifest = load_manifest(folder)
    if manifest.tokenizer_only:
        raise KPruneError(
            f"{folder} is a pruned tokenizer without a model (made by `kprune tokenizer`); prune "
            f"the model itself: kprune build MODEL --profile {manifest.profile.name} -o DIR"
        )
    if options.profile is not None:
        raise KPruneError(
            f"{folder} is pruned already (profile {manifest.profile.name}); serve it without "
            "--kprune-profile, or name its base model instead"
        )
    _apply(engine_args, folder, manifest, options.base)


def _serve_in_one_step(engine_args: Any, options: VocabularyOptions) -> None:
    model = engine_args.model
    if options.profile is None:
        raise KPruneError(_not_an_overlay(model, "--kprune-base"))
    profile = load_profile(options.profile, **options.one_sizing("--kprune-"))
    refuse_original_drafts(engine_args, profile.name)
    # Only now: building needs tokenizers, word lists and Unicode tables; serving a folder does not.
    from vllm_kprune.checkpoint.cached import cached_overlay

    revision = engine_args.revision
    corpora = options.corpora
    overlay = cached_overlay(
        model,
        profile,
        revision=revision,
        corpora=corpora,
        progress=_log_steps("kprune: building the overlay for profile %s, once: %s", profile.name),
    )
    # Or clients would have to name the model by its path in the cache.
    if not engine_args.served_model_name:
        engine_args.served_model_name = model
    # Both folders were checked just now; `_apply` would read them again.
    _point_at(engine_args, overlay.folder, overlay.base.folder)
    engine_args.revision = None  # of the hub model; the overlay is a plain folder


def _log_steps(message: str, *values: str) -> Progress:
    """A log line for each step of a build, so that nobody wonders what the server waits for."""
    # `tell` is called many times for each step, as its share grows.
    told: set[str] = set()

    def tell(step: str, share: float) -> None:
        if step not in told:
            told.add(step)
            logger.info(message, *values, step)

    return tell


def _apply(engine_args: Any, folder: Path, manifest: Manifest, base: Path | None) -> None:
    manifest.check_files(folder)
    dummy = engine_args.load_format == "dummy"
    # `dummy` reads no weights, so its base may be gone: only the path is noted, nothing is checked.
    weights = Path(manifest.base.path) if dummy else manifest.check_base(base, "--kprune-base")
    _point_at(engine_args, folder, weights)


def _point_at(engine_args: Any, overlay: Path, weights: Path) -> None:
    engine_args.model = str(overlay)
    engine_args.model_weights = str(weights)
    if engine_args.load_format != "dummy":
        engine_args.load_format = LOAD_FORMAT


def _refuse_conflicts(engine_args: Any) -> None:
    model = engine_args.model
    if engine_args.load_format not in _ACCEPTED_FORMATS:
        raise KPruneError(
            f"--load-format {engine_args.load_format} cannot read a pruned model: its weights are "
            "gathered from the base model; leave the option out"
        )
    if engine_args.tokenizer not in (None, model):
        raise KPruneError(
            f"--tokenizer {engine_args.tokenizer} does not fit a pruned model: its ids are those "
            "of the original vocabulary; leave the option out"
        )
    if engine_args.hf_config_path is not None:
        raise KPruneError(
            "--hf-config-path does not fit a pruned model: it brings its own configuration; "
            "leave the option out"
        )
    if engine_args.tokenizer_revision not in (None, engine_args.revision):
        raise KPruneError(
            "--tokenizer-revision differs from --revision: kprune prunes one revision's weights "
            "and tokenizer together; leave the option out"
        )


def _not_an_overlay(model: str, option: str) -> str:
    return (
        f"{option}: {model} has no {MANIFEST_NAME}; give a folder made by `kprune build`, "
        "or prune this model with --kprune-profile"
    )
