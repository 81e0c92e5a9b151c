"""Give an engine its guard where it can have one, before the engine starts; else say why not.

The class goes into vLLM's `logits_processors` of one engine. The entry point group
`vllm.logits_processors` would load it in every server of the machine.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

from vllm_kprune.checkpoint.model_folder import resolve_model
from vllm_kprune.errors import KPruneError
from vllm_kprune.guard.spelling import TokenSpellings, load_spellings
from vllm_kprune.serving import compat
from vllm_kprune.serving.guard.counters import ensure_folder
from vllm_kprune.serving.guard.markers import Markers, find_markers
from vllm_kprune.serving.guard.settings import request_policies
from vllm_kprune.serving.head.rows import check_choice
from vllm_kprune.serving.options import PREFIX
from vllm_kprune.serving.pruning.settings import request_options
from vllm_kprune.serving.request_options import HEAD_KEY, of_guard
from vllm_kprune.serving.settings import GUARD_CLASS_PATH, attach_settings, settings_of
from vllm_kprune.storage.cache import cache_dir

__all__ = [
    "attach_guard",
    "check_beam_search",
    "check_request",
    "engine_markers",
    "engine_spellings",
    "refuse_beam_options",
    "tokenizer_folder",
]


def attach_guard(config: Any) -> None:
    """Add the guard to a `VllmConfig` that asks for kprune; other engines are left as they are.

    Raises `KPruneError` when a default guard was asked for that this engine cannot have. An engine
    that cannot have one, and asked for none, answers requests that ask with the reason.
    """
    settings = settings_of(config)
    # Attached already: a configuration that was copied or built twice must not list the class
    # twice.
    if not settings.asks_for_kprune or settings.guard.attached:
        return
    guard, reason = settings.guard, _obstacle(config)
    if reason and guard.policies.guard:
        raise KPruneError(f"--kprune-languages and --kprune-scripts: {reason}")
    markers = None if reason else _find_markers(config)
    if markers and guard.think and markers.reasoning is None:
        raise KPruneError(f"--kprune-think-languages: {markers.no_reasoning}")
    if not reason:
        model = config.model_config
        # The class path as text: vLLM imports it itself, in the processes that sample.
        model.logits_processors = [*(model.logits_processors or ()), GUARD_CLASS_PATH]
        ensure_folder()
    guard = replace(guard, attached=not reason, obstacle=reason or "", markers=markers)
    attach_settings(config, replace(settings, guard=guard))


def check_request(config: Any, extra_args: Any) -> None:
    """Raise `KPruneError` for what a request may not ask of kprune, or not here.

    Without kprune a server ignores options that it does not know; with kprune, a request that asks
    for a guard must not go unguarded.
    """
    settings = settings_of(config)
    if not settings.asks_for_kprune and not settings.guard.attached:
        return
    # Only for its errors. The pruner reads the options again where the prompt becomes tokens.
    request_options(settings.pruner, extra_args)
    policies = request_policies(settings.guard, extra_args)
    check_choice(settings.head_rows, extra_args)
    if policies.guard and not settings.guard.attached:
        raise KPruneError(f"vllm_xargs: no guard: {settings.guard.obstacle}")
    if policies.reasoning and (markers := engine_markers(config)).reasoning is None:
        raise KPruneError(f"vllm_xargs: {PREFIX}think_languages: {markers.no_reasoning}")


def check_beam_search(config: Any) -> None:
    """Raise `KPruneError` for a beam search that the default guard would not reach.

    Beams grow from log-probabilities, and by default vLLM takes these before any processor runs.
    """
    guard = settings_of(config).guard
    if not guard.attached or not guard.policies.guard:
        return
    mode = str(config.model_config.logprobs_mode)
    # `raw_logprobs` and `raw_logits` are taken before processors run, `processed_*` after them.
    if mode.startswith("raw"):
        raise KPruneError(
            f"beam search: this server is guarded, and with --logprobs-mode {mode} beams grow "
            "unguarded; serve with --logprobs-mode processed_logprobs, or leave beam search out"
        )


def refuse_beam_options(extra_args: Any) -> None:
    """Raise `KPruneError` for options of guard and head: vLLM does not pass them on to beams."""
    given = [PREFIX + name for name in of_guard(extra_args)]
    given += [HEAD_KEY] if HEAD_KEY in (extra_args or {}) else []
    if given:
        raise KPruneError(
            f"vllm_xargs: vLLM passes no options to beam searches; leave {min(given)} out (what "
            "the server does for all requests reaches them, as with --kprune-languages)"
        )


def engine_spellings(config: Any) -> TokenSpellings:
    """What the tokens of an engine's tokenizer spell; made once, then read from kprune's cache.

    Raises `KPruneError` for a tokenizer without `tokenizer.json`, or of a kind that the guard does
    not know.
    """
    return load_spellings(_folder(config), cache_dir() / "guard")


def engine_markers(config: Any) -> Markers:
    """The tokens that structure an engine's answers; found where the guard was attached."""
    return settings_of(config).guard.markers or _find_markers(config)


def _find_markers(config: Any) -> Markers:
    return find_markers(config, _folder(config))


def tokenizer_folder(tokenizer: str, revision: str | None) -> Path:
    """The folder of a tokenizer. Raises `KPruneError` if it has no `tokenizer.json`."""
    folder = resolve_model(tokenizer, revision, weights=False)
    if not (folder / "tokenizer.json").is_file():
        raise KPruneError(f"{folder} has no tokenizer.json, which the guard reads the tokens from")
    return folder


def _folder(config: Any) -> Path:
    return tokenizer_folder(config.model_config.tokenizer, config.model_config.tokenizer_revision)


def _obstacle(config: Any) -> str | None:
    """Why this engine cannot have a guard; None if it can."""
    if reason := compat.refuses_logits_processors(config):
        return reason
    model = config.model_config
    if model.skip_tokenizer_init:
        return "the guard needs the tokenizer; leave skip_tokenizer_init out"
    try:
        engine_spellings(config)
    except KPruneError as error:
        return str(error)
    return None
