"""The two logits processor interfaces, and what the guard reads on each.

Rows of the table in `seams`.
"""

from vllm_kprune.serving.compat.features import GUARD, reads, seam
from vllm_kprune.serving.compat.seam import Seam, Use, Without

__all__ = [
    "HAS_TRITON",
    "IS_TPU",
    "PINS_MEMORY",
    "PLATFORM",
    "PP_GROUP",
    "STAGED_TOKENS",
    "TP_RANK",
    "TP_READY",
    "TRITON",
    "TRITON_LANGUAGE",
    "V1_APPLY",
    "V1_BATCH",
    "V1_BUDGET",
    "V1_INIT",
    "V1_INVARIANT",
    "V1_METADATA",
    "V1_PROCESS",
    "V1_PROCESSORS",
    "V1_UPDATE",
    "V1_VALIDATE",
    "V2_ADD",
    "V2_APPLY",
    "V2_BUDGET",
    "V2_BUDGET_STATE",
    "V2_CONTEXT",
    "V2_INIT",
    "V2_LENGTHS",
    "V2_REMOVE",
    "V2_REQUESTS",
    "V2_SHARDER",
    "V2_SLOTS",
    "V2_STAGED",
    "V2_TOKENS",
    "V2_VALIDATE",
]

_V1 = "vllm.v1.sample.logits_processor.interface"
_V2 = "vllm.v1.worker.gpu.sample.logits_processor.interface"
_V1_LOST = "the guard on the V1 model runner"
_V2_LOST = "the guard on the V2 model runner"


def _v1(name: str, signature: str, binding: str = "") -> Seam:
    place = f"{_V1}:LogitsProcessor.{name}"
    return seam(GUARD, place, Use.OVERRIDES, signature, binding=binding, lost=_V1_LOST)


def _v2(name: str, signature: str, binding: str = "") -> Seam:
    place = f"{_V2}:LogitsProcessor.{name}"
    return seam(GUARD, place, Use.OVERRIDES, signature, binding=binding, lost=_V2_LOST)


V1_INIT = _v1("__init__", "self, vllm_config, device, is_pin_memory")
V1_VALIDATE = _v1("validate_params", "cls, sampling_params", "class")
V1_INVARIANT = _v1("is_argmax_invariant", "self")
V1_UPDATE = _v1("update_state", "self, batch_update")
V1_APPLY = _v1("apply", "self, logits")
V1_BATCH = reads(GUARD, f"{_V1}:BatchUpdate", "removed", "added", "moved", lost=_V1_LOST)
V2_INIT = _v2("__init__", "self, vllm_config, req_states")
V2_VALIDATE = _v2("validate_params", "cls, sampling_params", "class")
V2_ADD = _v2("add_request", "self, req_idx, sampling_params")
V2_STAGED = _v2("apply_staged_writes", "self")
V2_APPLY = _v2("apply", "self, logits, ctx")
V2_CONTEXT = reads(
    GUARD,
    f"{_V2}:LogitsContext",
    *("expanded_idx_mapping", "idx_mapping_np", "expanded_local_pos", "input_ids", "pos"),
    lost=_V2_LOST,
)
V2_SLOTS = reads(
    GUARD,
    f"{_V2}:LogitsProcRequestState",
    *("device", "max_num_reqs", "vocab_size"),
    *("all_token_ids", "prompt_len", "prefill_len", "total_len"),
    lost=_V2_LOST,
)
V2_TOKENS = reads(GUARD, "vllm.v1.worker.gpu.buffer_utils:StagedWriteTensor", "gpu", lost=_V2_LOST)
V2_LENGTHS = reads(GUARD, "vllm.v1.worker.gpu.buffer_utils:UvaBackedTensor", "np", lost=_V2_LOST)
STAGED_TOKENS = seam(
    GUARD,
    "vllm.v1.worker.gpu.buffer_utils:StagedWriteTensor",
    Use.READS,
    attributes=("_staged_write_indices", "_staged_write_contents", "_staged_write_cu_lens"),
    without=Without.QUIET,
    lost="speed: a new request's tokens are read back from the GPU, which waits for it",
)
_UNKNOWN_END = "memory: a slot keeps the policy of its last request until the next one enters"
V2_REMOVE = seam(
    GUARD,
    "vllm.v1.worker.gpu.states:RequestState.remove_request",
    Use.WRAPS,
    "self, req_id",
    without=Without.QUIET,
    lost=_UNKNOWN_END,
)
V2_REQUESTS = seam(
    GUARD,
    "vllm.v1.worker.gpu.states:RequestState",
    Use.READS,
    attributes=("all_token_ids",),
    without=Without.QUIET,
    lost=_UNKNOWN_END,
)
_BROKEN_CHARACTER = "whole characters before a `</think>` that a thinking budget forces"
V2_BUDGET = seam(
    GUARD,
    "vllm.v1.worker.gpu.sample.thinking_budget:ThinkingBudgetState.apply",
    Use.WRAPS,
    "self, logits, ctx",
    without=Without.WARNS,
    lost=_BROKEN_CHARACTER,
)
V2_BUDGET_STATE = seam(
    GUARD,
    "vllm.v1.worker.gpu.sample.thinking_budget:ThinkingBudgetState",
    Use.READS,
    attributes=("enabled", "req_states", "use_thinking_budget", "reasoning_end_token_ids"),
    without=Without.WARNS,
    lost=_BROKEN_CHARACTER,
)
V1_PROCESS = seam(
    GUARD,
    "vllm.v1.sample.sampler:Sampler.apply_logits_processors",
    Use.WRAPS,
    "self, logits, sampling_metadata",
    without=Without.WARNS,
    lost=_BROKEN_CHARACTER,
)
V1_METADATA = seam(
    GUARD,
    "vllm.v1.sample.metadata:SamplingMetadata",
    Use.READS,
    attributes=("logitsprocs", "thinking_budget_state_holder"),
    without=Without.WARNS,
    lost=_BROKEN_CHARACTER,
)
V1_PROCESSORS = seam(
    GUARD,
    "vllm.v1.sample.logits_processor.state:LogitsProcessors",
    Use.READS,
    attributes=("non_argmax_invariant",),
    without=Without.WARNS,
    lost=_BROKEN_CHARACTER,
)
V1_BUDGET = seam(
    GUARD,
    "vllm.v1.sample.thinking_budget_state:ThinkingBudgetStateHolder",
    Use.READS,
    attributes=("has_tracked_requests", "think_end_token_ids"),
    without=Without.WARNS,
    lost=_BROKEN_CHARACTER,
)
V2_SHARDER = seam(
    GUARD,
    "vllm.v1.worker.gpu.sample.batch_shard:BatchSharder.__init__",
    Use.WRAPS,
    "self, max_num_reqs, max_num_logits_per_req, device",
    without=Without.QUIET,
    lost="with batch-sharded sampling, the counts of all ranks but the first",
)
TRITON = reads(GUARD, "vllm.triton_utils:triton", lost="the guard's kernels for GPUs")
TRITON_LANGUAGE = reads(GUARD, "vllm.triton_utils:tl", lost="the guard's kernels for GPUs")
HAS_TRITON = reads(GUARD, "vllm.triton_utils:HAS_TRITON", lost="the guard's kernels for GPUs")
PINS_MEMORY = seam(
    GUARD,
    "vllm.utils.platform_utils:is_pin_memory_available",
    Use.CALLS,
    lost="copies to a GPU that nothing waits for",
)
PP_GROUP = seam(
    GUARD,
    "vllm.distributed.parallel_state:get_pp_group",
    Use.CALLS,
    lost="which pipeline stage samples",
)
TP_READY = seam(
    GUARD,
    "vllm.distributed.parallel_state:model_parallel_is_initialized",
    Use.CALLS,
    lost="which rank counts",
)
TP_RANK = seam(
    GUARD,
    "vllm.distributed.parallel_state:get_tensor_model_parallel_rank",
    Use.CALLS,
    lost="which rank counts",
)
PLATFORM = reads(
    GUARD, "vllm.platforms:current_platform", lost="the refusal on TPUs, which run no processors"
)
IS_TPU = seam(
    GUARD,
    "vllm.platforms.interface:Platform.is_tpu",
    Use.CALLS,
    "self",
    lost="the refusal on TPUs, which run no processors",
)
