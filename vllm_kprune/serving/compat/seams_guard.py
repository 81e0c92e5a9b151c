"""The two logits processor interfaces, and what the guard reads on each.

Rows of the table in `seams`.
"""

from vllm_kprune.serving.compat.features import GUARD, reads, seam
from vllm_kprune.serving.compat.seam import Seam, Use, Without

__all__ = [
    "IS_TPU",
    "PLATFORM",
    "STAGED_TOKENS",
    "TP_RANK",
    "TP_READY",
    "V1_APPLY",
    "V1_BATCH",
    "V1_INIT",
    "V1_INVARIANT",
    "V1_UPDATE",
    "V1_VALIDATE",
    "V2_ADD",
    "V2_APPLY",
    "V2_CONTEXT",
    "V2_INIT",
    "V2_LENGTHS",
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
    *("device", "max_num_reqs", "vocab_size", "all_token_ids", "prompt_len", "prefill_len"),
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
