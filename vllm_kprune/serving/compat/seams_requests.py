"""How a server takes requests in and answers them: checks, LoRA adapters, metrics.

Rows of the table in `seams`.
"""

from vllm_kprune.serving.compat.features import (
    FAILURES,
    FROM_32,
    GUARD,
    LORA,
    METRICS,
    OFFLINE,
    ONLINE,
    REQUESTS,
    USAGE,
    at,
    reads,
    seam,
)
from vllm_kprune.serving.compat.seam import Use, Without

__all__ = [
    "ADAPTER_PATH",
    "ADD_REQUEST",
    "ANSWER",
    "ANSWER_IDS",
    "BEAM_SEARCH",
    "CHAT_BEAMS",
    "CHAT_PARAMS",
    "CHAT_XARGS",
    "CHECK_LORA_LOAD",
    "COMPLETION_BEAMS",
    "COMPLETION_XARGS",
    "ERROR_RESPONSE",
    "FINISH_REQUEST",
    "GENERATION_ERROR",
    "GRACEFUL_ERROR",
    "INPUT_CONFIG",
    "INPUT_PROCESSOR",
    "LORA_REQUEST",
    "PARAMS_OF_STRUCTURE",
    "PROCESS_INPUTS",
    "RAISE_IF_ERROR",
    "REGISTRY",
    "RESPONSE_PARAMS",
    "RETRYABLE_ERROR",
    "SAMPLING_PARAMS",
    "VALIDATE_LORA",
    "VALIDATE_PARAMS",
    "VALIDATION_ERROR",
]

# Requests

_INPUT = "vllm.v1.engine.input_processor:InputProcessor"
INPUT_PROCESSOR = seam(
    REQUESTS,
    f"{_INPUT}.__init__",
    Use.WRAPS,
    "self, vllm_config",
    without=Without.QUIET,
    lost="a second look at start for features that this vLLM cannot give",
)
VALIDATE_PARAMS = seam(
    REQUESTS,
    f"{_INPUT}._validate_params",
    Use.WRAPS,
    "self, params",
    lost="HTTP 400 for bad `kprune_*` options, and for a guard that is not there",
)
PROCESS_INPUTS = seam(
    REQUESTS,
    f"{_INPUT}.process_inputs",
    Use.WRAPS,
    "self, request_id, prompt, params",
    lost="the counts of guarded requests, and JSON escapes in answers that are JSON",
)
ADD_REQUEST = seam(
    GUARD,
    "vllm.v1.engine.async_llm:AsyncLLM.add_request",
    Use.WRAPS,
    "self, request_id, prompt, params",
    binding="async",
    without=Without.QUIET,
    lost="speed: a policy that is new is built on the server's event loop",
)
_TOOLS_LOST = "JSON escapes in answers with tool calls: a request must ask with kprune_escapes"
CHAT_PARAMS = seam(
    GUARD,
    "vllm.entrypoints.openai.chat_completion.protocol:ChatCompletionRequest.to_sampling_params",
    Use.WRAPS,
    "self",
    without=Without.WARNS,
    lost=_TOOLS_LOST,
)
RESPONSE_PARAMS = seam(
    GUARD,
    "vllm.entrypoints.openai.responses.protocol:ResponsesRequest.to_sampling_params",
    Use.WRAPS,
    "self",
    without=Without.WARNS,
    lost=_TOOLS_LOST,
)
INPUT_CONFIG = reads(
    (REQUESTS, LORA), _INPUT, "vllm_config", "model_config", lost="the settings of the server"
)
# Not for its watermarks, which kprune has nothing to do with: it is the one call with which beam
# searches of a server and of `LLM` both begin (see `requests.check_beam_searches`).
BEAM_SEARCH = seam(
    GUARD,
    (at(f"{_INPUT}.resolve_watermarking", FROM_32),),
    Use.WRAPS,
    "self, params",
    without=Without.WARNS,
    lost="the refusal of beam searches that the default guard does not reach: they run unguarded",
)
_BEAM_OPTIONS_LOST = "HTTP 400 for a beam search with guard options, which would be ignored"
COMPLETION_BEAMS = seam(
    REQUESTS,
    "vllm.entrypoints.openai.completion.protocol:CompletionRequest.to_beam_search_params",
    Use.WRAPS,
    "self",
    lost=_BEAM_OPTIONS_LOST,
)
CHAT_BEAMS = seam(
    REQUESTS,
    "vllm.entrypoints.openai.chat_completion.protocol:ChatCompletionRequest.to_beam_search_params",
    Use.WRAPS,
    "self",
    lost=_BEAM_OPTIONS_LOST,
)
COMPLETION_XARGS = reads(
    (REQUESTS, ONLINE),
    "vllm.entrypoints.openai.completion.protocol:CompletionRequest",
    *("vllm_xargs", "suffix"),
    lost="the options of requests",
)
CHAT_XARGS = reads(
    (REQUESTS, ONLINE),
    "vllm.entrypoints.openai.chat_completion.protocol:ChatCompletionRequest",
    *("vllm_xargs", "documents", "chat_template_kwargs", "tools", "tool_choice"),
    lost="the options of requests",
)
SAMPLING_PARAMS = reads(
    (GUARD, REQUESTS, ONLINE, OFFLINE),
    "vllm.sampling_params:SamplingParams",
    *("extra_args", "temperature", "structured_outputs", "allowed_token_ids"),
    *("bad_words_token_ids", "eos_token_id", "all_stop_token_ids"),
    *("ignore_eos", "stop_token_ids"),
    lost="the options of requests",
)
PARAMS_OF_STRUCTURE = reads(
    GUARD,
    "vllm.sampling_params:StructuredOutputsParams",
    *("json", "json_object", "structural_tag"),
    lost="JSON escapes in answers that are JSON",
)
VALIDATION_ERROR = reads(
    (REQUESTS, ONLINE, LORA),
    "vllm.exceptions:VLLMValidationError",
    lost="HTTP 400 for a client's mistake",
)
RAISE_IF_ERROR = seam(
    FAILURES,
    "vllm.entrypoints.generate.base.serving:GenerateBaseServing._raise_if_error",
    Use.WRAPS,
    "self, finish_reason, request_id",
    lost="the reason of an answer that guard and grammar ended: vLLM says only that it failed",
)
GENERATION_ERROR = seam(
    (FAILURES, ONLINE),
    "vllm.exceptions:GenerationError",
    Use.CALLS,
    "message",
    lost="HTTP 500 with a reason",
)
RETRYABLE_ERROR = seam(
    ONLINE,
    (at("vllm.exceptions:RetryableRequestError", FROM_32),),
    Use.CALLS,
    "message",
    without=Without.QUIET,
    lost="nothing: HTTP 503 for a busy pruner is then a GracefulHTTPError",
)
GRACEFUL_ERROR = seam(
    ONLINE,
    "vllm.exceptions:GracefulHTTPError",
    Use.CALLS,
    "message, http_status",
    without=Without.QUIET,
    lost="HTTP 503 for a busy pruner if RetryableRequestError is missing too: it is HTTP 500",
)
REGISTRY = seam(
    METRICS,
    "vllm.entrypoints.serve.instrumentator.metrics:get_prometheus_registry",
    Use.WRAPS,
    lost="the guard's counts at `/metrics`",
)

# Answers

_USAGE_LOST = "the counts of `GET /kprune/usage`"
FINISH_REQUEST = seam(
    USAGE,
    "vllm.v1.engine.output_processor:OutputProcessor._finish_request",
    Use.WRAPS,
    "self, req_state",
    lost=_USAGE_LOST,
)
ANSWER = reads(
    USAGE,
    "vllm.v1.engine.output_processor:RequestState",
    *("detokenizer", "parent_req", "external_req_id"),
    lost=_USAGE_LOST,
)
ANSWER_IDS = reads(
    USAGE,
    "vllm.v1.engine.detokenizer:IncrementalDetokenizer",
    "output_token_ids",
    lost=_USAGE_LOST,
)

# LoRA adapters

VALIDATE_LORA = seam(
    LORA,
    f"{_INPUT}._validate_lora",
    Use.WRAPS,
    "self, lora_request",
    lost="HTTP 400 for a request with an adapter that does not fit",
)
CHECK_LORA_LOAD = seam(
    LORA,
    "vllm.entrypoints.openai.models.serving:OpenAIServingModels._check_load_lora_adapter_request",
    Use.WRAPS,
    "self, request",
    binding="async",
    lost="HTTP 400 when an adapter that does not fit is loaded",
)
ERROR_RESPONSE = seam(
    LORA,
    "vllm.entrypoints.serve:create_error_response",
    Use.CALLS,
    "*, message",
    lost="HTTP 400 when an adapter that does not fit is loaded",
)
ADAPTER_PATH = seam(
    LORA,
    "vllm.lora.utils:get_adapter_absolute_path",
    Use.CALLS,
    "lora_path",
    lost="the folder of an adapter",
)
LORA_REQUEST = reads(
    LORA, "vllm.lora.request:LoRARequest", "lora_path", lost="the folder of an adapter"
)
