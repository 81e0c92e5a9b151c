"""Give an engine its guard: where it can be had, checked before the engine starts; else, why not.

The class goes into vLLM's `logits_processors` of one engine. The entry point group
`vllm.logits_processors` would load it in every server of the machine.
"""

from functools import lru_cache
from typing import Any

from vllm_kprune.checkpoint.model_folder import resolve_model
from vllm_kprune.errors import KPruneError
from vllm_kprune.guard.spelling import TokenSpellings, load_spellings
from vllm_kprune.serving import compat
from vllm_kprune.serving.activation import asks_for_kprune
from vllm_kprune.serving.guard.counters import ensure_folder
from vllm_kprune.serving.guard.settings import guard_settings, request_policy
from vllm_kprune.serving.options import PREFIX
from vllm_kprune.serving.pruning.settings import pruner_settings, wish_of
from vllm_kprune.serving.request_options import of_guard
from vllm_kprune.storage.cache import cache_dir

__all__ = [
    "CLASS_PATH",
    "attach_guard",
    "check_beam_search",
    "check_request",
    "engine_spellings",
    "is_attached",
    "refuse_beam_options",
]

CLASS_PATH = "vllm_kprune.serving.guard.processor:LanguageGuard"


def attach_guard(config: Any) -> None:
    """Add the guard to a `VllmConfig` that asks for kprune; other engines are left as they are.

    Raises `KPruneError` when a default guard was asked for that this engine cannot have. An engine
    that cannot have one, and asked for none, answers requests that ask with the reason.
    """
    if not asks_for_kprune(config) or is_attached(config):
        return
    settings = guard_settings(config.additional_config)
    if reason := _obstacle(config):
        if settings.default:
            raise KPruneError(f"--kprune-languages and --kprune-scripts: {reason}")
        return
    model = config.model_config
    model.logits_processors = [*(model.logits_processors or ()), CLASS_PATH]
    ensure_folder()


def is_attached(config: Any) -> bool:
    """Does this engine have a guard?"""
    return CLASS_PATH in (config.model_config.logits_processors or ())


def check_request(config: Any, extra_args: Any) -> None:
    """Raise `KPruneError` for what a request may not ask of guard and input pruner, or not here.

    Without kprune a server ignores options that it does not know; with kprune, a request that asks
    for a guard must not go unguarded.
    """
    attached = is_attached(config)
    if not attached and not asks_for_kprune(config):
        return
    wish_of(pruner_settings(config.additional_config), extra_args)
    policy = request_policy(guard_settings(config.additional_config), extra_args)
    if policy and not attached:
        raise KPruneError(f"vllm_xargs: no guard: {_obstacle(config)}")


def check_beam_search(config: Any) -> None:
    """Raise `KPruneError` for a beam search that the default guard would not reach.

    Beams are grown from log-probabilities, and by default vLLM takes these before any processor.
    """
    if not is_attached(config) or guard_settings(config.additional_config).default is None:
        return
    mode = str(config.model_config.logprobs_mode)
    if mode.startswith("raw"):
        raise KPruneError(
            f"beam search: this server is guarded, and with --logprobs-mode {mode} beams are grown "
            "unguarded; serve with --logprobs-mode processed_logprobs, or leave beam search out"
        )


def refuse_beam_options(extra_args: Any) -> None:
    """Raise `KPruneError` for the guard's: vLLM passes no options of a request on to its beams."""
    if given := of_guard(extra_args):
        raise KPruneError(
            f"vllm_xargs: vLLM passes no options to beam searches; leave {PREFIX}{min(given)} out "
            "(a guard of all requests reaches them: serve with --kprune-languages)"
        )


def engine_spellings(config: Any) -> TokenSpellings:
    """What the tokens of an engine's tokenizer spell; made once, then from kprune's cache.

    Raises `KPruneError` for a tokenizer without `tokenizer.json`, or of a kind that the guard does
    not know.
    """
    return _spellings(config.model_config.tokenizer, config.model_config.tokenizer_revision)


def _spellings(tokenizer: str, revision: str | None) -> TokenSpellings:
    folder = resolve_model(tokenizer, revision, weights=False)
    if not (folder / "tokenizer.json").is_file():
        raise KPruneError(f"{folder} has no tokenizer.json, from which the guard knows the tokens")
    return load_spellings(folder, cache_dir() / "guard")


def _obstacle(config: Any) -> str | None:
    """Why this engine cannot have a guard; None if it can."""
    if reason := compat.refuses_logits_processors(config):
        return reason
    model = config.model_config
    if model.skip_tokenizer_init:
        return "the guard needs the tokenizer; leave skip_tokenizer_init out"
    return _tokenizer_obstacle(model.tokenizer, model.tokenizer_revision)


@lru_cache(maxsize=4)
def _tokenizer_obstacle(tokenizer: str, revision: str | None) -> str | None:
    """Why the guard does not know these tokens; requests ask again, and to read them is slow."""
    try:
        _spellings(tokenizer, revision)
    except KPruneError as error:
        return str(error)
    return None
