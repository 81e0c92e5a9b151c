"""The one table of vLLM names that kprune relies on, with what is lost without each.

`installer` verifies and wraps them in a running vLLM, `packaging/check_vllm.py` holds them against
wheels, and `seam_rows` gives them to the documentation. A new use of vLLM starts with a row here; a
test fails on an import from vllm that has none. Only names and parameters are checked: that they
still mean the same is for the tests of `serving`, which run on one version.
"""

from collections.abc import Iterator

from vllm_kprune.serving.compat.seam import Feature, Place, Seam, Use, Without

__all__ = ["FEATURES", "LOADER_SEAMS", "SEAMS", "VERSIONS", "seam_rows"]

VERSIONS = ("0.31.0", "0.32.0", "0.33.0")
_FROM_32 = VERSIONS[1:]

COMMAND_LINE = Feature("command line", "pass the options as additional_config instead")
VOCABULARY = Feature("pruned vocabulary", "serve the base model without --kprune-profile")
LORA = Feature("LoRA checks", "serve without LoRA adapters (--enable-lora)")
GUARD = Feature("language guard", "leave --kprune-languages and --kprune-scripts out")
REQUESTS = Feature("request checks", "leave --plugin kprune and the --kprune-* options out")
FAILURES = Feature("failure messages", essential=False)
METRICS = Feature("guard metrics", essential=False)
ONLINE = Feature("input pruning", "leave --kprune-input-pruner out")
OFFLINE = Feature("offline input pruning", "leave input_pruner out of additional_config")
ROUTES = Feature("HTTP routes", "leave --plugin kprune out")
FEATURES = (
    *(COMMAND_LINE, VOCABULARY, LORA, GUARD, REQUESTS),
    *(FAILURES, METRICS, ONLINE, OFFLINE, ROUTES),
)


def _at(place: str, versions: tuple[str, ...] = VERSIONS) -> Place:
    module, _, path = place.partition(":")
    return Place(module, path, versions)


def _seam(
    features: Feature | tuple[Feature, ...],
    place: str | tuple[Place, ...],
    use: Use,
    signature: str = "",
    *,
    lost: str,
    binding: str = "",
    attributes: tuple[str, ...] = (),
    without: Without = Without.OFF,
) -> Seam:
    return Seam(
        features if isinstance(features, tuple) else (features,),
        place if isinstance(place, tuple) else (_at(place),),
        use,
        signature,
        lost,
        binding,
        attributes,
        without,
    )


def _reads(
    features: Feature | tuple[Feature, ...], place: str, *attributes: str, lost: str
) -> Seam:
    return _seam(features, place, Use.READS, attributes=attributes, lost=lost)


# --- Engine arguments and the command line

_ARGS = "vllm.engine.arg_utils:EngineArgs"
ADD_CLI_ARGS = _seam(
    COMMAND_LINE,
    f"{_ARGS}.add_cli_args",
    Use.WRAPS,
    "parser",
    binding="static",
    lost="`--plugin` and the `--kprune-*` options",
)
FROM_CLI_ARGS = _seam(
    COMMAND_LINE,
    f"{_ARGS}.from_cli_args",
    Use.WRAPS,
    "cls, args",
    binding="class",
    lost="the values of the `--kprune-*` options",
)
SERVE_COMMAND = _seam(
    COMMAND_LINE,
    "vllm.entrypoints.cli.serve:ServeSubcommand.cmd",
    Use.WRAPS,
    "args",
    binding="static",
    lost="mistakes as one line, and the options of further API servers",
)
MIDDLEWARE = _seam(
    ONLINE,
    (
        _at("vllm.entrypoints.launchers.cli_args:FrontendArgs", VERSIONS[:2]),
        _at("vllm.entrypoints.common.cli_args:FrontendArgs", VERSIONS[2:]),
    ),
    Use.READS,
    attributes=("middleware",),
    without=Without.WARNS,
    lost="the `x-kprune-*` headers of answers",
)
CREATE_ENGINE_CONFIG = _seam(
    (VOCABULARY, GUARD),
    f"{_ARGS}.create_engine_config",
    Use.WRAPS,
    "self, usage_context",
    lost="the overlay's settings, and the guard among the engine's logits processors",
)
CREATE_MODEL_CONFIG = _seam(
    VOCABULARY, f"{_ARGS}.create_model_config", Use.WRAPS, "self", lost="the overlay's settings"
)
ENGINE_ARGS = _reads(
    (VOCABULARY, GUARD),
    _ARGS,
    *("model", "model_weights", "revision", "tokenizer", "tokenizer_revision", "load_format"),
    *("served_model_name", "hf_config_path", "enable_lora", "additional_config"),
    lost="the overlay's settings",
)
VERSION = _reads(
    FEATURES, "vllm.version:__version__", lost="the check that this vLLM is a tested one"
)

# --- Configuration

MODEL_CONFIG = _reads(
    (VOCABULARY, GUARD),
    "vllm.config:ModelConfig",
    *("model", "model_weights", "revision", "tokenizer", "tokenizer_revision", "max_model_len"),
    *("skip_tokenizer_init", "runner_type", "is_diffusion", "return_sampling_mask"),
    *("logprobs_mode", "logits_processors", "hf_text_config"),
    lost="what the engine serves",
)
VLLM_CONFIG = _reads(
    (VOCABULARY, GUARD),
    "vllm.config:VllmConfig",
    *("model_config", "parallel_config", "speculative_config", "lora_config"),
    *("additional_config", "use_v2_model_runner"),
    lost="what the engine serves",
)
PARALLEL_CONFIG = _reads(
    GUARD, "vllm.config:ParallelConfig", "enable_batch_sharded_sampling", lost="which rank counts"
)
UNTIE = _seam(
    VOCABULARY,
    "vllm.config:ModelConfig.maybe_untie_word_embeddings",
    Use.CALLS,
    "self",
    lost="LM heads that a configuration denies",
)
VOCAB_SIZE = _seam(
    GUARD,
    "vllm.config:ModelConfig.get_vocab_size",
    Use.CALLS,
    "self",
    lost="the width of the guard's masks",
)
GENERATION_CONFIG = _seam(
    GUARD,
    "vllm.config:ModelConfig.try_get_generation_config",
    Use.CALLS,
    "self",
    lost="the model's own stop tokens",
)

# --- Loading weights

_LOADER = "vllm.model_executor.model_loader:DefaultModelLoader"
REGISTER_LOADER = _seam(
    VOCABULARY,
    "vllm.model_executor.model_loader:register_model_loader",
    Use.CALLS,
    "load_format",
    lost="the load format `kprune`",
)
LOADER = _seam(
    VOCABULARY,
    f"{_LOADER}.__init__",
    Use.OVERRIDES,
    "self, load_config",
    lost="the load format `kprune`",
)
LOAD_CONFIG = _reads(
    VOCABULARY, "vllm.config.load:LoadConfig", "load_format", lost="the load format `kprune`"
)
DOWNLOAD_MODEL = _seam(
    VOCABULARY,
    f"{_LOADER}.download_model",
    Use.OVERRIDES,
    "self, model_config",
    lost="loading without a download",
)
ALL_WEIGHTS = _seam(
    VOCABULARY,
    f"{_LOADER}.get_all_weights",
    Use.OVERRIDES,
    "self, model_config, model",
    lost="cutting the vocabulary tensors while they are loaded",
)
WEIGHTS_ITERATOR = _seam(
    VOCABULARY,
    f"{_LOADER}._get_weights_iterator",
    Use.CALLS,
    "self, source",
    lost="reading the base's weights",
)
WEIGHTS_SOURCE = _seam(
    VOCABULARY,
    f"{_LOADER}.Source",
    Use.CALLS,
    "model_or_path, revision, *, fall_back_to_pt",
    lost="reading the base's weights",
)
UNUSED_WEIGHT = _seam(
    VOCABULARY,
    (_at(f"{_LOADER}.Source.is_unused_weight", _FROM_32),),
    Use.READS,
    without=Without.QUIET,
    lost="skipping shards that hold nothing for this model: they are read and dropped",
)

# What must fit before vLLM may import our loader.
LOADER_SEAMS = (
    *(REGISTER_LOADER, LOADER, DOWNLOAD_MODEL, ALL_WEIGHTS),
    *(WEIGHTS_ITERATOR, WEIGHTS_SOURCE, UNUSED_WEIGHT),
)

# --- Requests

_INPUT = "vllm.v1.engine.input_processor:InputProcessor"
INPUT_PROCESSOR = _seam(
    REQUESTS,
    f"{_INPUT}.__init__",
    Use.WRAPS,
    "self, vllm_config",
    without=Without.QUIET,
    lost="a second look at start for features that this vLLM cannot give",
)
VALIDATE_PARAMS = _seam(
    REQUESTS,
    f"{_INPUT}._validate_params",
    Use.WRAPS,
    "self, params",
    lost="HTTP 400 for bad `kprune_*` options, and for a guard that is not there",
)
INPUT_CONFIG = _reads(
    (REQUESTS, LORA), _INPUT, "vllm_config", "model_config", lost="the settings of the server"
)
BEAM_SEARCH = _seam(
    GUARD,
    (_at(f"{_INPUT}.resolve_watermarking", _FROM_32),),
    Use.WRAPS,
    "self, params",
    without=Without.WARNS,
    lost="the refusal of beam searches that the default guard does not reach: they run unguarded",
)
_BEAM_OPTIONS_LOST = "HTTP 400 for a beam search with guard options, which would be ignored"
COMPLETION_BEAMS = _seam(
    REQUESTS,
    "vllm.entrypoints.openai.completion.protocol:CompletionRequest.to_beam_search_params",
    Use.WRAPS,
    "self",
    lost=_BEAM_OPTIONS_LOST,
)
CHAT_BEAMS = _seam(
    REQUESTS,
    "vllm.entrypoints.openai.chat_completion.protocol:ChatCompletionRequest.to_beam_search_params",
    Use.WRAPS,
    "self",
    lost=_BEAM_OPTIONS_LOST,
)
COMPLETION_XARGS = _reads(
    (REQUESTS, ONLINE),
    "vllm.entrypoints.openai.completion.protocol:CompletionRequest",
    *("vllm_xargs", "suffix"),
    lost="the options of requests",
)
CHAT_XARGS = _reads(
    (REQUESTS, ONLINE),
    "vllm.entrypoints.openai.chat_completion.protocol:ChatCompletionRequest",
    *("vllm_xargs", "documents", "chat_template_kwargs"),
    lost="the options of requests",
)
SAMPLING_PARAMS = _reads(
    (GUARD, REQUESTS, ONLINE, OFFLINE),
    "vllm.sampling_params:SamplingParams",
    *("extra_args", "temperature", "structured_outputs", "allowed_token_ids"),
    *("bad_words_token_ids", "eos_token_id", "all_stop_token_ids"),
    lost="the options of requests",
)
VALIDATION_ERROR = _reads(
    (REQUESTS, ONLINE, LORA),
    "vllm.exceptions:VLLMValidationError",
    lost="HTTP 400 for a client's mistake",
)
RAISE_IF_ERROR = _seam(
    FAILURES,
    "vllm.entrypoints.generate.base.serving:GenerateBaseServing._raise_if_error",
    Use.WRAPS,
    "self, finish_reason, request_id",
    lost="the reason of an answer that guard and grammar ended: vLLM says only that it failed",
)
GENERATION_ERROR = _seam(
    (FAILURES, ONLINE),
    "vllm.exceptions:GenerationError",
    Use.CALLS,
    "message",
    lost="HTTP 500 with a reason",
)
RETRYABLE_ERROR = _seam(
    ONLINE,
    (_at("vllm.exceptions:RetryableRequestError", _FROM_32),),
    Use.CALLS,
    "message",
    without=Without.QUIET,
    lost="nothing: HTTP 503 for a busy pruner is then a GracefulHTTPError",
)
GRACEFUL_ERROR = _seam(
    ONLINE,
    "vllm.exceptions:GracefulHTTPError",
    Use.CALLS,
    "message, http_status",
    without=Without.QUIET,
    lost="HTTP 503 for a busy pruner if RetryableRequestError is missing too: it is HTTP 500",
)
REGISTRY = _seam(
    METRICS,
    "vllm.entrypoints.serve.instrumentator.metrics:get_prometheus_registry",
    Use.WRAPS,
    lost="the guard's counts at `/metrics`",
)

# --- LoRA adapters

VALIDATE_LORA = _seam(
    LORA,
    f"{_INPUT}._validate_lora",
    Use.WRAPS,
    "self, lora_request",
    lost="HTTP 400 for a request with an adapter that does not fit",
)
CHECK_LORA_LOAD = _seam(
    LORA,
    "vllm.entrypoints.openai.models.serving:OpenAIServingModels._check_load_lora_adapter_request",
    Use.WRAPS,
    "self, request",
    binding="async",
    lost="HTTP 400 when an adapter that does not fit is loaded",
)
ERROR_RESPONSE = _seam(
    LORA,
    "vllm.entrypoints.serve:create_error_response",
    Use.CALLS,
    "*, message",
    lost="HTTP 400 when an adapter that does not fit is loaded",
)
ADAPTER_PATH = _seam(
    LORA,
    "vllm.lora.utils:get_adapter_absolute_path",
    Use.CALLS,
    "lora_path",
    lost="the folder of an adapter",
)
LORA_REQUEST = _reads(
    LORA, "vllm.lora.request:LoRARequest", "lora_path", lost="the folder of an adapter"
)

# --- The guard as a logits processor

_V1 = "vllm.v1.sample.logits_processor.interface"
_V2 = "vllm.v1.worker.gpu.sample.logits_processor.interface"
_V1_LOST = "the guard on the V1 model runner"
_V2_LOST = "the guard on the V2 model runner"


def _v1(name: str, signature: str, binding: str = "") -> Seam:
    place = f"{_V1}:LogitsProcessor.{name}"
    return _seam(GUARD, place, Use.OVERRIDES, signature, binding=binding, lost=_V1_LOST)


def _v2(name: str, signature: str, binding: str = "") -> Seam:
    place = f"{_V2}:LogitsProcessor.{name}"
    return _seam(GUARD, place, Use.OVERRIDES, signature, binding=binding, lost=_V2_LOST)


V1_INIT = _v1("__init__", "self, vllm_config, device, is_pin_memory")
V1_VALIDATE = _v1("validate_params", "cls, sampling_params", "class")
V1_INVARIANT = _v1("is_argmax_invariant", "self")
V1_UPDATE = _v1("update_state", "self, batch_update")
V1_APPLY = _v1("apply", "self, logits")
V1_BATCH = _reads(GUARD, f"{_V1}:BatchUpdate", "removed", "added", "moved", lost=_V1_LOST)
V2_INIT = _v2("__init__", "self, vllm_config, req_states")
V2_VALIDATE = _v2("validate_params", "cls, sampling_params", "class")
V2_ADD = _v2("add_request", "self, req_idx, sampling_params")
V2_STAGED = _v2("apply_staged_writes", "self")
V2_APPLY = _v2("apply", "self, logits, ctx")
V2_CONTEXT = _reads(
    GUARD,
    f"{_V2}:LogitsContext",
    *("expanded_idx_mapping", "idx_mapping_np", "expanded_local_pos", "input_ids", "pos"),
    lost=_V2_LOST,
)
V2_SLOTS = _reads(
    GUARD,
    f"{_V2}:LogitsProcRequestState",
    *("device", "max_num_reqs", "vocab_size", "all_token_ids", "prompt_len", "prefill_len"),
    lost=_V2_LOST,
)
V2_TOKENS = _reads(GUARD, "vllm.v1.worker.gpu.buffer_utils:StagedWriteTensor", "gpu", lost=_V2_LOST)
V2_LENGTHS = _reads(GUARD, "vllm.v1.worker.gpu.buffer_utils:UvaBackedTensor", "np", lost=_V2_LOST)
STAGED_TOKENS = _seam(
    GUARD,
    "vllm.v1.worker.gpu.buffer_utils:StagedWriteTensor",
    Use.READS,
    attributes=("_staged_write_indices", "_staged_write_contents", "_staged_write_cu_lens"),
    without=Without.QUIET,
    lost="speed: a new request's tokens are read back from the GPU, which waits for it",
)
TP_READY = _seam(
    GUARD,
    "vllm.distributed.parallel_state:model_parallel_is_initialized",
    Use.CALLS,
    lost="which rank counts",
)
TP_RANK = _seam(
    GUARD,
    "vllm.distributed.parallel_state:get_tensor_model_parallel_rank",
    Use.CALLS,
    lost="which rank counts",
)
PLATFORM = _reads(
    GUARD, "vllm.platforms:current_platform", lost="the refusal on TPUs, which run no processors"
)
IS_TPU = _seam(
    GUARD,
    "vllm.platforms.interface:Platform.is_tpu",
    Use.CALLS,
    "self",
    lost="the refusal on TPUs, which run no processors",
)

# --- Input pruning

_ONLINE = "vllm.renderers.online_renderer:OnlineRenderer"
WARM_UP = _seam(
    ONLINE,
    f"{_ONLINE}.warmup",
    Use.WRAPS,
    "self",
    lost="loading the ranker before the first request",
)
PREPROCESS_CHAT = _seam(
    ONLINE,
    f"{_ONLINE}.preprocess_chat",
    Use.WRAPS,
    "self, request, messages",
    binding="async",
    lost="pruning of chats",
)
PREPROCESS_COMPLETION = _seam(
    ONLINE,
    f"{_ONLINE}.preprocess_cmpl",
    Use.WRAPS,
    "self, request, prompts",
    binding="async",
    lost="pruning of completions",
)
ONLINE_RENDERER = _reads(ONLINE, _ONLINE, "renderer", lost="the settings of the server")
RENDERER = _reads(
    (ONLINE, OFFLINE),
    "vllm.renderers.base:BaseRenderer",
    *("config", "model_config", "tokenizer"),
    lost="the settings of the server, and the target's tokenizer",
)
TOKENS_INPUT = _seam(
    ONLINE,
    "vllm.inputs:tokens_input",
    Use.CALLS,
    "prompt_token_ids, *, cache_salt",
    without=Without.WARNS,
    lost="the measured break-even (`--kprune-min-tokens auto`)",
)
GENERATE = _seam(
    ONLINE,
    "vllm.engine.protocol:EngineClient.generate",
    Use.CALLS,
    "self, prompt, sampling_params, request_id",
    without=Without.WARNS,
    lost="the measured break-even (`--kprune-min-tokens auto`)",
)


def _offline(name: str, signature: str, lost: str) -> Seam:
    owner = "OfflineInferenceMixin"
    places = (
        _at(f"vllm.entrypoints.common.offline:{owner}.{name}", _FROM_32),
        _at(f"vllm.entrypoints.offline_utils:{owner}.{name}", VERSIONS[:1]),
    )
    return _seam(OFFLINE, places, Use.WRAPS, signature, lost=lost)


OFFLINE_PROMPTS = _offline(
    "_add_completion_requests", "self, prompts, params", "pruning of `LLM.generate`"
)
OFFLINE_CHATS = _offline("_add_chat_requests", "self, messages, params", "pruning of `LLM.chat`")
OFFLINE_BEAMS = _seam(
    OFFLINE,
    "vllm.entrypoints.generate.beam_search.offline:BeamSearchOfflineMixin.beam_search",
    Use.WRAPS,
    "self, prompts",
    lost="pruning of `LLM.beam_search`",
)
PROMPT_TO_SEQ = _seam(
    OFFLINE,
    "vllm.renderers.inputs.preprocess:prompt_to_seq",
    Use.CALLS,
    "prompt_or_prompts",
    lost="pruning of `LLM.generate`",
)
CHAT_TO_SEQ = _seam(
    OFFLINE,
    "vllm.renderers.inputs.preprocess:conversation_to_seq",
    Use.CALLS,
    "conversation_or_conversations",
    lost="pruning of `LLM.chat`",
)

# --- HTTP routes

LOAD_ENDPOINTS = _seam(
    ROUTES, "vllm.plugins:load_endpoint_plugins", Use.WRAPS, lost="`--plugin kprune`"
)
_ENDPOINT = "vllm.plugins.endpoint_plugins.interface:EndpointPlugin"
ATTACH_ROUTER = _seam(
    ROUTES,
    f"{_ENDPOINT}.attach_router",
    Use.OVERRIDES,
    "self, app",
    lost="`GET /kprune` and `POST /kprune/prune`",
)
INIT_STATE = _seam(
    ROUTES,
    f"{_ENDPOINT}.init_state",
    Use.OVERRIDES,
    "self, engine_client, state, args",
    binding="async",
    lost="`GET /kprune` and `POST /kprune/prune`",
)
ENDPOINT = _reads(
    ROUTES, _ENDPOINT, *("name", "required_tasks"), lost="`GET /kprune` and `POST /kprune/prune`"
)
AUTHENTICATION = _seam(
    ROUTES,
    "vllm.entrypoints.serve.middleware.authenticate:AuthenticationMiddleware",
    Use.CALLS,
    "app, tokens",
    lost="the API key of `POST /kprune/prune`",
)
VERIFY_TOKEN = _seam(
    ROUTES,
    "vllm.entrypoints.serve.middleware.authenticate:AuthenticationMiddleware.verify_token",
    Use.CALLS,
    "self, headers",
    lost="the API key of `POST /kprune/prune`",
)
API_KEY = _reads(ROUTES, "vllm.envs:VLLM_API_KEY", lost="the API key of `POST /kprune/prune`")

SEAMS = tuple(value for value in list(globals().values()) if isinstance(value, Seam))


def seam_rows() -> Iterator[dict[str, str]]:
    """The table as text, a row for each seam: for the documentation and `check_vllm.py`."""
    for seam in SEAMS:
        yield seam.as_row()
