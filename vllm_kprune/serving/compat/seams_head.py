"""The LM head: how it is made, loaded and applied.

Rows of the table in `seams`.
"""

from vllm_kprune.serving.compat.features import HEAD, reads, seam
from vllm_kprune.serving.compat.seam import Use

__all__ = [
    "ALL_REDUCE",
    "CURRENT_CONFIG",
    "EMBEDDING",
    "LM_HEAD",
    "LOAD_MODEL",
    "LOGITS",
    "PADDING",
    "PLAIN_HEAD",
    "PLAIN_LINEAR",
    "TOP_K_TOKENS",
    "TOP_TOKENS",
    "V1_BATCH",
    "V1_DRAFTS",
    "V1_STEP",
    "V2_ADD",
    "V2_BATCH",
    "V2_SAMPLE",
]

_LAYERS = "vllm.model_executor.layers"
_PROCESSOR = f"{_LAYERS}.logits_processor:LogitsProcessor"
_EMBEDDING = f"{_LAYERS}.vocab_parallel_embedding"
_LOST = "the pruned LM head"
_DRAFTS = "drafters that take the best token of each rank"

LOAD_MODEL = seam(
    HEAD,
    "vllm.model_executor.model_loader.base_loader:BaseModelLoader.load_model",
    Use.WRAPS,
    "self, vllm_config, model_config",
    lost=_LOST,
)
LM_HEAD = seam(
    HEAD,
    f"{_EMBEDDING}:ParallelLMHead.__init__",
    Use.WRAPS,
    "self, num_embeddings, embedding_dim, *, params_dtype, padding_size",
    lost=_LOST,
)
LOGITS = seam(
    HEAD,
    f"{_PROCESSOR}.forward",
    Use.WRAPS,
    "self, lm_head, hidden_states, embedding_bias, skip_gather",
    lost=_LOST,
)
TOP_TOKENS = seam(
    HEAD,
    f"{_PROCESSOR}.get_top_tokens",
    Use.WRAPS,
    "self, lm_head, hidden_states, embedding_bias",
    lost=_DRAFTS,
)
TOP_K_TOKENS = seam(
    HEAD,
    f"{_PROCESSOR}.get_top_k_tokens",
    Use.WRAPS,
    "self, lm_head, hidden_states, k, embedding_bias, *, return_log_probs",
    lost=_DRAFTS,
)
EMBEDDING = reads(
    HEAD,
    f"{_EMBEDDING}:VocabParallelEmbedding",
    *("org_vocab_size", "shard_indices", "embedding_dim", "tp_size", "quant_method"),
    *("weight_loader",),
    lost=_LOST,
)
PADDING = reads(HEAD, f"{_EMBEDDING}:DEFAULT_VOCAB_PADDING_SIZE", lost=_LOST)
PLAIN_HEAD = reads(HEAD, f"{_EMBEDDING}:UnquantizedEmbeddingMethod", lost=_LOST)
PLAIN_LINEAR = reads(HEAD, f"{_LAYERS}.linear:UnquantizedLinearMethod", lost=_LOST)
ALL_REDUCE = seam(
    HEAD,
    "vllm.distributed.communication_op:tensor_model_parallel_all_reduce",
    Use.CALLS,
    "input_",
    lost="a pruned head that is tied to the embedding, with tensor parallelism",
)
CURRENT_CONFIG = seam(
    HEAD, "vllm.config:set_current_vllm_config", Use.CALLS, "vllm_config", lost=_LOST
)
_CHOICE_LOST = "several profiles for the LM head, chosen by request"
_V1_RUNNER = "vllm.v1.worker.gpu_model_runner:GPUModelRunner"
V1_STEP = seam(
    HEAD,
    f"{_V1_RUNNER}.execute_model",
    Use.WRAPS,
    "self, scheduler_output, intermediate_tensors",
    lost=_CHOICE_LOST,
)
V1_BATCH = reads(HEAD, "vllm.v1.worker.gpu_input_batch:InputBatch", "req_ids", lost=_CHOICE_LOST)
V1_DRAFTS = reads(
    HEAD,
    "vllm.v1.core.sched.output:SchedulerOutput",
    "scheduled_spec_decode_tokens",
    lost=_CHOICE_LOST,
)
_V2 = "vllm.v1.worker.gpu"
V2_ADD = seam(
    HEAD,
    f"{_V2}.sample.sampler:Sampler.add_request",
    Use.WRAPS,
    "self, req_idx, sampling_params",
    lost=_CHOICE_LOST,
)
V2_SAMPLE = seam(
    HEAD,
    f"{_V2}.model_runner:GPUModelRunner.sample",
    Use.WRAPS,
    "self, hidden_states, input_batch, grammar_output",
    lost=_CHOICE_LOST,
)
V2_BATCH = reads(
    HEAD,
    f"{_V2}.input_batch:InputBatch",
    *("cu_num_logits_np", "idx_mapping_np"),
    lost=_CHOICE_LOST,
)
