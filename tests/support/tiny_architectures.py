"""A small random model of every real class in the table of families, with a real tokenizer.

Saved by transformers itself, so that tensor names, configs and shards are what it writes. The
embedding differs from the tokenizer as published models do: rows past the tokenizer (Qwen3,
Llama), or a token past the embedding (Gemma-3's image token in a text model).
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from support.tiny_tokenizers import TINY
from vllm_kprune.checkpoint.families import FAMILIES

# Loud enough for the logits to differ: the default of 0.02 leaves them near zero.
_SIZES = {
    "hidden_size": 64,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 512,
    "initializer_range": 0.3,
}
_SLIDING = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 8}
_VISION = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "image_size": 28,
    "patch_size": 14,
}

IMAGE = "<image>"
IMAGE_TOKENS = {"boi": "<unused2>", "eoi": "<unused4>", "image": IMAGE}
CHAT_TEMPLATE = (
    "{{ bos_token }}{% if tools %}<unused1>{{ tools | tojson }}\n{% endif %}"
    "{% for m in messages %}<unused3>{{ m.role }}\n{{ m.content }}<eos>\n{% endfor %}"
    "{% if add_generation_prompt %}<unused3>assistant\n{% endif %}"
)


@dataclass(frozen=True)
class TinyArchitecture:
    """One class of transformers, as a published model of that family uses it."""

    architecture: str
    config: str
    kind: str
    tied: bool
    spare_rows: int
    settings: Mapping[str, Any]
    shards: bool = False

    def save(self, folder: Path, dtype: str = "float32") -> Path:
        """Write the model into `folder` and return it."""
        import torch
        import transformers

        tokenizer = self._tokenizer()
        torch.manual_seed(0)
        config = getattr(transformers, self.config)(**self._arguments(tokenizer))
        model = getattr(transformers, self.architecture)(config).to(getattr(torch, dtype))
        _fill_small(model)
        options = {"max_shard_size": "120KB"} if self.shards else {}
        model.save_pretrained(folder, **options)
        _save_tokenizer(tokenizer, folder)
        if self.config == "Gemma3Config":
            _save_processor(folder)
        return folder

    def _tokenizer(self) -> Tokenizer:
        tokenizer = Tokenizer.from_str(TINY[self.kind]().to_str())
        if "Gemma3" in self.config:
            tokenizer.add_special_tokens([IMAGE])  # the last id, past a text model's embedding
        return tokenizer

    def _arguments(self, tokenizer: Tokenizer) -> dict[str, Any]:
        ids = {f"{name}_token_id": tokenizer.token_to_id(f"<{name}>") for name in _NAMED}
        rows = tokenizer.get_vocab_size() + self.spare_rows
        text = {**_SIZES, **self.settings, **ids, "vocab_size": rows}
        text["tie_word_embeddings"] = self.tied
        if self.config != "Gemma3Config":
            return text
        images = {
            f"{name}_token_index": tokenizer.token_to_id(token)
            for name, token in IMAGE_TOKENS.items()
        }
        return {"text_config": text, "vision_config": _VISION, "mm_tokens_per_image": 4} | images


_NAMED = ("pad", "eos", "bos")


def _fill_small(model: Any) -> None:
    """Norms and biases other than their first value, which a mistake could not be seen by."""
    import torch

    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name or "bias" in name:
                parameter.add_(torch.randn(parameter.shape) * 0.1)


def _save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<bos>",
        "eos_token": "<eos>",
        "pad_token": "<pad>",
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")


def _save_processor(folder: Path) -> None:
    """What a multimodal Gemma-3 has besides: how images are prepared, and the tokens for them."""
    tokens = {f"{name}_token": token for name, token in IMAGE_TOKENS.items()}
    settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    size = {"height": _VISION["image_size"], "width": _VISION["image_size"]}
    images = {"image_processor_type": "Gemma3ImageProcessor", "size": size, "image_seq_length": 4}
    files = {
        "tokenizer_config.json": {**settings, **tokens, "extra_special_tokens": tokens},
        "preprocessor_config.json": images,
        "processor_config.json": {"processor_class": "Gemma3Processor", "image_seq_length": 4},
    }
    for name, value in files.items():
        (folder / name).write_text(json.dumps(value), encoding="utf-8")


_HEAD_DIM = {"head_dim": 32}  # the least that vLLM can serve on a CPU
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
_GEMMA = {**_HEAD_DIM, **_SLIDING, "query_pre_attn_scalar": 32}
_DEEPSEEK = {
    "num_key_value_heads": 2,
    "q_lora_rank": 24,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 16,
    "v_head_dim": 32,
    "first_k_dense_replace": 1,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 2,
    "topk_group": 1,
    "moe_intermediate_size": 16,
    "num_mtp_layers": 0,
    "scoring_func": "sigmoid",
    "topk_method": "noaux_tc",
}
_LINEAR = {
    "layer_types": ["linear_attention", "full_attention"],
    "linear_key_head_dim": 32,
    "linear_value_head_dim": 32,
    "linear_num_key_heads": 1,
    "linear_num_value_heads": 2,
    "shared_expert_intermediate_size": 16,
}

ARCHITECTURES: Mapping[str, TinyArchitecture] = {
    name: TinyArchitecture(*values)  # type: ignore[arg-type]
    for name, values in {
        "qwen2-tied": ("Qwen2ForCausalLM", "Qwen2Config", "byte_level", True, 27, {}),
        "qwen2-untied": ("Qwen2ForCausalLM", "Qwen2Config", "byte_level", False, 27, {}, True),
        "qwen3-untied": ("Qwen3ForCausalLM", "Qwen3Config", "byte_level", False, 27, _HEAD_DIM),
        "qwen3-tied": ("Qwen3ForCausalLM", "Qwen3Config", "byte_level", True, 27, _HEAD_DIM, True),
        "qwen3-moe": (
            "Qwen3MoeForCausalLM", "Qwen3MoeConfig", "byte_level", False, 27,
            {**_HEAD_DIM, **_EXPERTS}, True,
        ),
        "gemma3-text": ("Gemma3ForCausalLM", "Gemma3TextConfig", "byte_fallback", True, -1, _GEMMA),
        "gemma3-multimodal": (
            "Gemma3ForConditionalGeneration", "Gemma3Config", "byte_fallback", True, 64, _GEMMA,
            True,
        ),
        "llama-3.1": ("LlamaForCausalLM", "LlamaConfig", "byte_level", False, 0, {}, True),
        "llama-3.2": ("LlamaForCausalLM", "LlamaConfig", "byte_level", True, 0, {}),
        "aya-23": (
            "CohereForCausalLM", "CohereConfig", "byte_level", True, 5, {"logit_scale": 1.0},
        ),
        "aya-expanse": (
            "Cohere2ForCausalLM", "Cohere2Config", "byte_level", True, 5,
            {**_SLIDING, "logit_scale": 1.0}, True,
        ),
        "command-r-plus": (
            "CohereForCausalLM", "CohereConfig", "byte_level", True, 0,
            {"use_qk_norm": True, "logit_scale": 0.8},
        ),
        "cohere-untied": ("CohereForCausalLM", "CohereConfig", "byte_level", False, 0, {}),
        # Mistral-Nemo's heads are wider than hidden size and number of heads say.
        "mistral-nemo": (
            "MistralForCausalLM", "MistralConfig", "byte_level", False, 0, {"head_dim": 64}, True,
        ),
        "ministral": (
            "MinistralForCausalLM", "MinistralConfig", "byte_level", False, 0,
            {**_HEAD_DIM, **_SLIDING},
        ),
        "ministral3": (
            "Ministral3ForCausalLM", "Ministral3Config", "byte_level", False, 0, _HEAD_DIM,
        ),
        "deepseek-v3": (
            "DeepseekV3ForCausalLM", "DeepseekV3Config", "byte_level", False, 27, _DEEPSEEK, True,
        ),
        "gpt-oss": (
            "GptOssForCausalLM", "GptOssConfig", "byte_level", False, 27,
            {**_HEAD_DIM, **_SLIDING, "num_local_experts": 4, "num_experts_per_tok": 2},
        ),
        "exaone4": (
            "Exaone4ForCausalLM", "Exaone4Config", "byte_level", False, 0,
            {**_HEAD_DIM, **_SLIDING},
        ),
        "exaone4-tied": ("Exaone4ForCausalLM", "Exaone4Config", "byte_level", True, 0, _HEAD_DIM),
        "hyperclovax": (
            "HyperCLOVAXForCausalLM", "HyperCLOVAXConfig", "byte_level", False, 27,
            {
                "attention_multiplier": 0.2, "embedding_multiplier": 2.0, "logits_scaling": 0.5,
                "residual_multiplier": 0.7,
            },
        ),
        "phi4": ("Phi3ForCausalLM", "Phi3Config", "byte_level", False, 27, {}),
        "olmo2": ("Olmo2ForCausalLM", "Olmo2Config", "byte_level", False, 27, {}),
        "smollm3": ("SmolLM3ForCausalLM", "SmolLM3Config", "byte_level", True, 0, {}),
        "qwen3-next": (
            "Qwen3NextForCausalLM", "Qwen3NextConfig", "byte_level", False, 27,
            {**_HEAD_DIM, **_EXPERTS, **_LINEAR}, True,
        ),
        "gemma2": ("Gemma2ForCausalLM", "Gemma2Config", "byte_fallback", True, 0, _GEMMA),
    }.items()
}  # fmt: skip

# Sparsifying, healing and analysing work on the decoder layers, whatever the vocabulary. The first
# are tried at every run, the others repeat them on classes whose layers are much alike.
_TRIED_FIRST = (
    "qwen2-tied", "qwen2-untied", "qwen3-untied", "qwen3-tied", "qwen3-moe", "gemma3-text",
    "gemma3-multimodal", "llama-3.1", "llama-3.2", "aya-23", "aya-expanse", "cohere-untied",
)  # fmt: skip
BODIES = [
    pytest.param(name, marks=[] if name in _TRIED_FIRST else pytest.mark.exhaustive, id=name)
    for name, tiny in ARCHITECTURES.items()
    if FAMILIES[tiny.architecture].body_refused is None
]
# Models in memory must not have fused experts, so these are tried from a folder alone.
MIXTURES = ("qwen3-moe", "deepseek-v3", "qwen3-next", "gpt-oss")
# Not run in vLLM's CPU build; the rows of their families say why.
NOT_SERVED = ("qwen3-next", "deepseek-v3", "gpt-oss", "ministral", "ministral3")
