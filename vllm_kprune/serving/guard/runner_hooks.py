"""Where the guard meets vLLM's model runners besides being a logits processor.

Ends of requests, which no processor is told; budgets for a model's reasoning, which force tokens
after all processors; and whether sampling is shared out between ranks.
"""

from collections.abc import Callable
from typing import Any

from vllm_kprune.serving.compat import seams_guard
from vllm_kprune.serving.compat.installer import Wraps
from vllm_kprune.serving.guard.live import mark_sharded, slots_of

__all__ = ["runner_wraps"]


def runner_wraps() -> Wraps:
    """What the guard puts around vLLM's runners."""
    return {
        seams_guard.V2_REMOVE: _remove_request,
        seams_guard.V2_BUDGET: _apply_v2_budget,
        seams_guard.V2_SHARDER: _make_sharder,
        seams_guard.V1_PROCESS: _apply_v1_processors,
    }


def _remove_request(original: Callable[..., Any], states: Any, req_id: str) -> Any:
    slot = original(states, req_id)
    slots = slots_of(states.all_token_ids)
    # None: the runner has no such request, which it asks about before it adds one.
    if slot is not None and slots is not None:
        slots.remove_request(slot)
    return slot


def _make_sharder(original: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
    original(*args, **kwargs)
    # Not from the configuration: vLLM leaves a model alone that cannot share out its logits.
    mark_sharded()


def _apply_v2_budget(
    original: Callable[..., Any], budget: Any, logits: Any, ctx: Any, *args: Any, **kwargs: Any
) -> Any:
    result = original(budget, logits, ctx, *args, **kwargs)
    slots = slots_of(budget.req_states.all_token_ids)
    if slots and budget.enabled and budget.use_thinking_budget[ctx.idx_mapping_np].any():
        slots.withdraw(logits, ctx, budget.reasoning_end_token_ids)
    return result


def _apply_v1_processors(
    original: Callable[..., Any],
    sampler: Any,
    logits: Any,
    sampling_metadata: Any,
    *args: Any,
    **kwargs: Any,
) -> Any:
    logits = original(sampler, logits, sampling_metadata, *args, **kwargs)
    budget = sampling_metadata.thinking_budget_state_holder
    if budget is not None and budget.has_tracked_requests():
        for processor in sampling_metadata.logitsprocs.non_argmax_invariant:
            if withdraw := getattr(processor, "withdraw", None):
                withdraw(logits, budget.think_end_token_ids)
    return logits
