"""Where head pruning meets vLLM: loading of the target model, its logits, and whose they are.

A server that did not ask for it pays one look-up of an attribute per step. Nothing heavy is
imported before a model is loaded.
"""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from vllm_kprune.serving.compat import seams_head
from vllm_kprune.serving.compat.installer import Wraps
from vllm_kprune.serving.head.state import (
    ATTRIBUTE,
    asking,
    current,
    loading,
    profile_of,
    serves_several,
)

__all__ = ["head_wraps"]

# Where vLLM's V2 sampler has the profile of each slot.
_PROFILES = "_kprune_profiles"


def head_wraps() -> Wraps:
    """What head pruning puts around vLLM's loading and logits."""
    return {
        seams_head.LOAD_MODEL: _load_model,
        seams_head.LM_HEAD: _make_head,
        seams_head.LOGITS: _logits,
        seams_head.TOP_TOKENS: _top_tokens,
        seams_head.TOP_K_TOKENS: _top_k_tokens,
        seams_head.V1_STEP: _v1_step,
        seams_head.V2_ADD: _v2_add,
        seams_head.V2_SAMPLE: _v2_sample,
    }


def _load_model(
    original: Callable[..., Any],
    loader: Any,
    vllm_config: Any,
    model_config: Any,
    *rest: Any,
    **how: Any,
) -> Any:
    from vllm_kprune.serving.settings import settings_of

    settings = settings_of(vllm_config)
    options = settings.vocabulary
    if _is_draft(vllm_config, model_config):
        model = original(loader, vllm_config, model_config, *rest, **how)
        if options.draft_head:
            from vllm_kprune.serving.head.drafter import attach_draft_heads

            attach_draft_heads(model, _draft_rows(settings, vllm_config), vllm_config)
        return model
    if not options.head:
        return original(loader, vllm_config, model_config, *rest, **how)
    from vllm_kprune.serving.head.making import attach_head
    from vllm_kprune.serving.head.rows import resolve_rows

    # A copy of the configuration may have lost what was resolved; the cache has it.
    rows = settings.head_rows or resolve_rows(options, model_config.model, model_config.revision)
    tied = bool(getattr(model_config.hf_text_config, "tie_word_embeddings", False))
    with loading(rows, model_config.get_vocab_size(), tied) as state:
        model = original(loader, vllm_config, model_config, *rest, **how)
        attach_head(model, state, vllm_config)
    return model


def _draft_rows(settings: Any, vllm_config: Any) -> Any:
    from vllm_kprune.serving.head.rows import resolve_draft_rows

    # While a draft model is loaded, its own configuration may be in the target's place.
    target = vllm_config.speculative_config.target_model_config or vllm_config.model_config
    return settings.draft_rows or resolve_draft_rows(
        settings.vocabulary, target.model, target.revision
    )


def _is_draft(vllm_config: Any, model_config: Any) -> bool:
    """Is this the drafter of speculative decoding, which is loaded with the same settings?"""
    speculative = vllm_config.speculative_config
    if speculative is None:
        return False
    # An EAGLE head is loaded beside the target's configuration, a draft model with a copy of it in
    # which its own takes the target's place.
    draft = speculative.draft_model_config
    return model_config is not speculative.target_model_config and (
        model_config is draft or model_config.model == getattr(draft, "model", None)
    )


def _make_head(original: Callable[..., Any], layer: Any, *rest: Any, **how: Any) -> None:
    state = current()
    if state is None:
        original(layer, *rest, **how)
        return
    from vllm_kprune.serving.head.making import make_head

    make_head(state, original, layer, *rest, **how)


def _logits(
    original: Callable[..., Any],
    processor: Any,
    lm_head: Any,
    hidden_states: Any,
    embedding_bias: Any = None,
    *rest: Any,
) -> Any:
    head = _head_of(processor, lm_head)
    if head is None:
        return original(processor, lm_head, hidden_states, embedding_bias, *rest)
    return head.logits(original, processor, hidden_states, *rest)


def _top_tokens(
    original: Callable[..., Any], processor: Any, lm_head: Any, hidden_states: Any, *rest: Any
) -> Any:
    head = _head_of(processor, lm_head)
    if head is None:
        return original(processor, lm_head, hidden_states, *rest)
    return head.top(original, processor, hidden_states, *rest)


def _top_k_tokens(
    original: Callable[..., Any],
    processor: Any,
    lm_head: Any,
    hidden_states: Any,
    k: int,
    *rest: Any,
    **how: Any,
) -> Any:
    head = _head_of(processor, lm_head)
    if head is None:
        return original(processor, lm_head, hidden_states, k, *rest, **how)
    return head.top(functools.partial(original, **how), processor, hidden_states, k, *rest)


def _head_of(processor: Any, layer: Any) -> Any:
    """The pruned head to use in place of a layer; None for a layer that is used as it is."""
    drafter = getattr(processor, "__dict__", {}).get(ATTRIBUTE)
    if drafter is not None:
        return drafter.of(layer)
    return getattr(layer, "__dict__", {}).get(ATTRIBUTE)


def _v1_step(
    original: Callable[..., Any], runner: Any, scheduler_output: Any, *rest: Any, **how: Any
) -> Any:
    if not serves_several():
        return original(runner, scheduler_output, *rest, **how)
    with asking(lambda: _v1_profiles(runner, scheduler_output)):
        return original(runner, scheduler_output, *rest, **how)


def _v1_profiles(runner: Any, scheduler_output: Any) -> list[int]:
    """By row: a request has one for each of its drafts, and one more."""
    drafts, found = scheduler_output.scheduled_spec_decode_tokens, []
    for name in runner.input_batch.req_ids:
        params = runner.requests[name].sampling_params
        # None: a pooling model's request.
        profile = profile_of(params.extra_args if params else None)
        found += [profile] * (1 + len(drafts.get(name, ())))
    return found


def _v2_add(original: Callable[..., Any], sampler: Any, req_idx: int, sampling_params: Any) -> None:
    original(sampler, req_idx, sampling_params)
    if serves_several():
        slots = len(sampler.needs_logits_processing)
        profiles = sampler.__dict__.setdefault(_PROFILES, np.zeros(slots, np.uint8))
        profiles[req_idx] = profile_of(sampling_params.extra_args)


def _v2_sample(
    original: Callable[..., Any],
    runner: Any,
    hidden_states: Any,
    input_batch: Any,
    *rest: Any,
) -> Any:
    profiles = getattr(runner.sampler, _PROFILES, None) if serves_several() else None
    if profiles is None:
        return original(runner, hidden_states, input_batch, *rest)
    rows = np.diff(input_batch.cu_num_logits_np)
    found = np.repeat(profiles[input_batch.idx_mapping_np], rows).tolist()
    with asking(lambda: found):
        return original(runner, hidden_states, input_batch, *rest)
