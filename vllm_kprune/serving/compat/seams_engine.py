"""The engine's arguments, configuration and weights, and the command line.

Rows of the table in `seams`.
"""

from vllm_kprune.serving.compat.features import (
    COMMAND_LINE,
    FEATURES,
    FROM_32,
    GUARD,
    ONLINE,
    VERSIONS,
    VOCABULARY,
    at,
    reads,
    seam,
)
from vllm_kprune.serving.compat.seam import Use, Without

__all__ = [
    "ADD_CLI_ARGS",
    "ALL_WEIGHTS",
    "CREATE_ENGINE_CONFIG",
    "CREATE_MODEL_CONFIG",
    "DOWNLOAD_MODEL",
    "ENGINE_ARGS",
    "FROM_CLI_ARGS",
    "GENERATION_CONFIG",
    "LOADER",
    "LOADER_SEAMS",
    "LOAD_CONFIG",
    "MIDDLEWARE",
    "MODEL_CONFIG",
    "PARALLEL_CONFIG",
    "REGISTER_LOADER",
    "SERVE_COMMAND",
    "SPECULATIVE_CONFIG",
    "UNTIE",
    "UNUSED_WEIGHT",
    "VERSION",
    "VLLM_CONFIG",
    "VOCAB_SIZE",
    "WEIGHTS_ITERATOR",
    "WEIGHTS_SOURCE",
]

# Engine arguments and the command line

_ARGS = "vllm.engine.arg_utils:EngineArgs"
ADD_CLI_ARGS = seam(
    COMMAND_LINE,
    f"{_ARGS}.add_cli_args",
    Use.WRAPS,
    "parser",
    binding="static",
    lost="`--plugin` and the `--kprune-*` options",
)
FROM_CLI_ARGS = seam(
    COMMAND_LINE,
    f"{_ARGS}.from_cli_args",
    Use.WRAPS,
    "cls, args",
    binding="class",
    lost="the values of the `--kprune-*` options",
)
SERVE_COMMAND = seam(
    COMMAND_LINE,
    "vllm.entrypoints.cli.serve:ServeSubcommand.cmd",
    Use.WRAPS,
    "args",
    binding="static",
    lost="mistakes as one line, and the options of further API servers",
)
MIDDLEWARE = seam(
    ONLINE,
    (
        at("vllm.entrypoints.launchers.cli_args:FrontendArgs", VERSIONS[:2]),
        at("vllm.entrypoints.common.cli_args:FrontendArgs", VERSIONS[2:]),
    ),
    Use.READS,
    attributes=("middleware",),
    without=Without.WARNS,
    lost="the `x-kprune-*` headers of answers",
)
CREATE_ENGINE_CONFIG = seam(
    (VOCABULARY, GUARD),
    f"{_ARGS}.create_engine_config",
    Use.WRAPS,
    "self, usage_context",
    lost="the overlay's settings, and the guard among the engine's logits processors",
)
CREATE_MODEL_CONFIG = seam(
    VOCABULARY, f"{_ARGS}.create_model_config", Use.WRAPS, "self", lost="the overlay's settings"
)
ENGINE_ARGS = reads(
    (VOCABULARY, GUARD),
    _ARGS,
    *("model", "model_weights", "revision", "tokenizer", "tokenizer_revision", "load_format"),
    *("served_model_name", "hf_config_path", "enable_lora", "additional_config"),
    *("speculative_config", "spec_method"),
    lost="the overlay's settings",
)
VERSION = reads(
    FEATURES, "vllm.version:__version__", lost="the check that this vLLM is a tested one"
)

# Configuration

MODEL_CONFIG = reads(
    (VOCABULARY, GUARD),
    "vllm.config:ModelConfig",
    *("model", "model_weights", "revision", "tokenizer", "tokenizer_revision", "max_model_len"),
    *("skip_tokenizer_init", "runner_type", "is_diffusion", "return_sampling_mask"),
    *("logprobs_mode", "logits_processors", "hf_text_config"),
    lost="what the engine serves",
)
VLLM_CONFIG = reads(
    (VOCABULARY, GUARD),
    "vllm.config:VllmConfig",
    *("model_config", "parallel_config", "speculative_config", "lora_config"),
    *("additional_config", "use_v2_model_runner", "structured_outputs_config"),
    lost="what the engine serves",
)
SPECULATIVE_CONFIG = reads(
    (VOCABULARY, GUARD),
    "vllm.config:SpeculativeConfig",
    *("method", "model", "draft_model_config", "rejection_sample_method"),
    lost="the refusal of drafts that do not fit a pruned model, or that pass by the guard",
)
PARALLEL_CONFIG = reads(
    GUARD, "vllm.config:ParallelConfig", "enable_batch_sharded_sampling", lost="which rank counts"
)
UNTIE = seam(
    VOCABULARY,
    "vllm.config:ModelConfig.maybe_untie_word_embeddings",
    Use.CALLS,
    "self",
    lost="LM heads that a configuration denies",
)
VOCAB_SIZE = seam(
    GUARD,
    "vllm.config:ModelConfig.get_vocab_size",
    Use.CALLS,
    "self",
    lost="the width of the guard's masks",
)
GENERATION_CONFIG = seam(
    GUARD,
    "vllm.config:ModelConfig.try_get_generation_config",
    Use.CALLS,
    "self",
    lost="the model's own stop tokens",
)

# Loading weights

_LOADER = "vllm.model_executor.model_loader:DefaultModelLoader"
REGISTER_LOADER = seam(
    VOCABULARY,
    "vllm.model_executor.model_loader:register_model_loader",
    Use.CALLS,
    "load_format",
    lost="the load format `kprune`",
)
LOADER = seam(
    VOCABULARY,
    f"{_LOADER}.__init__",
    Use.OVERRIDES,
    "self, load_config",
    lost="the load format `kprune`",
)
LOAD_CONFIG = reads(
    VOCABULARY, "vllm.config.load:LoadConfig", "load_format", lost="the load format `kprune`"
)
DOWNLOAD_MODEL = seam(
    VOCABULARY,
    f"{_LOADER}.download_model",
    Use.OVERRIDES,
    "self, model_config",
    lost="loading without a download",
)
ALL_WEIGHTS = seam(
    VOCABULARY,
    f"{_LOADER}.get_all_weights",
    Use.OVERRIDES,
    "self, model_config, model",
    lost="cutting the vocabulary tensors while they are loaded",
)
WEIGHTS_ITERATOR = seam(
    VOCABULARY,
    f"{_LOADER}._get_weights_iterator",
    Use.CALLS,
    "self, source",
    lost="reading the base's weights",
)
WEIGHTS_SOURCE = seam(
    VOCABULARY,
    f"{_LOADER}.Source",
    Use.CALLS,
    "model_or_path, revision, *, fall_back_to_pt",
    lost="reading the base's weights",
)
UNUSED_WEIGHT = seam(
    VOCABULARY,
    (at(f"{_LOADER}.Source.is_unused_weight", FROM_32),),
    Use.READS,
    without=Without.QUIET,
    lost="skipping shards that hold nothing for this model: they are read and dropped",
)

# What must fit before vLLM may import our loader.
LOADER_SEAMS = (
    *(REGISTER_LOADER, LOADER, DOWNLOAD_MODEL, ALL_WEIGHTS),
    *(WEIGHTS_ITERATOR, WEIGHTS_SOURCE, UNUSED_WEIGHT),
)
