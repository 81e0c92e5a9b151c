"""The model families whose vocabulary tensors kprune knows: one row each.

To add a family, give its architecture as in config.json, the names of the embedding and LM-head
tensors in its checkpoints, and the key under which config.json nests the text model, if it does.
Then look up in transformers' configuration class which token ids and which tying it assumes if
config.json does not say.

A row also says what the tests show for its class. What they do not show is assumed, and `kprune
inspect` tells both.
"""

import re
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from vllm_kprune.errors import KPruneError, shown
from vllm_kprune.tokenizer.bpe import NOT_BPE

__all__ = ["FAMILIES", "REFUSED", "Family", "find_family", "implied_ids", "with_implied_ids"]


_MTP_NOT_RUN = "MTP layers, whose vocabulary is pruned too, were never run"


@dataclass(frozen=True)
class Family:
    """Where a family keeps its vocabulary: tensor names, and the text model's place in the config.

    A checkpoint whose head is tied to the embedding may have no `head`. `spellings` are other
    (embedding, head) names in checkpoints of the same family. `copies` matches the names of further
    tensors with a row for each token, such as those of MTP layers. `implied_ids` are the token ids
    that apply if config.json does not name them, nested as they would be there.

    `models` are published models of the class. Each class is tested with a tiny random model in
    transformers; `not_served` says why none was served with vLLM's CPU build, and `real` names
    published weights that were run. `body_refused` says why the commands that work on decoder
    layers (sparsify, heal, analyze) refuse the class.
    """

    architecture: str
    models: str
    embedding: str = "model.embed_tokens.weight"
    head: str = "lm_head.weight"
    text_config: str | None = None
    spellings: tuple[tuple[str, str], ...] = ()
    ties_by_default: bool = False
    implied_ids: Mapping[str, Any] = field(default_factory=dict)
    copies: str | None = None
    not_served: str | None = None
    real: str | None = None
    body_refused: str | None = None

    @property
    def shown(self) -> tuple[str, ...]:
        """What the tests show for this class, in words."""
        served = "" if self.not_served else ", and its greedy answers in vLLM's CPU build"
        return (
            f"a tiny random model of this class: law 4 in transformers (float32){served}",
            *([f"published weights: {self.real}"] if self.real else []),
        )

    @property
    def assumed(self) -> tuple[str, ...]:
        """What no test shows, in words."""
        others = f"other published weights than {self.real}" if self.real else "published weights"
        return (
            f"{others} behave as the tiny model does",
            *([f"vLLM: {self.not_served}"] if self.not_served else []),
            *([f"sparsify, heal, analyze: {self.body_refused}"] if self.body_refused else []),
            *([_MTP_NOT_RUN] if self.copies else []),
        )

    def copies_in(self, tensors: Iterable[str]) -> tuple[str, ...]:
        """Names of the further vocabulary tensors of a checkpoint, sorted."""
        if self.copies is None:
            return ()
        return tuple(sorted(name for name in tensors if re.fullmatch(self.copies, name)))

    def spelled_in(self, tensors: Container[str]) -> "Family":
        """The family with the tensor names that a checkpoint of it uses."""
        for embedding, head in self.spellings:
            if embedding in tensors:
                # The embedding decides, because every checkpoint has one; a tied head may be left
                # out.
                return replace(self, embedding=embedding, head=head)
        return self

    def text(self, config: Mapping[str, Any]) -> Mapping[str, Any]:
        """The part of a parsed config.json that describes the text model."""
        part = config.get(self.text_config, {}) if self.text_config else config
        return part if isinstance(part, Mapping) else {}


# Defaults of transformers' configuration classes (configuration_gemma3.py and so on). The classes
# of Qwen assume no ids, so their rows below name none.
_GEMMA_IDS = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2}
_COHERE_IDS = {"pad_token_id": 0, "bos_token_id": 5, "eos_token_id": 255_001}

_NOT_RUN = "not run with this class"
_LLAMA_IDS = {"bos_token_id": 1, "eos_token_id": 2}
# MTP layers come after the decoder layers and repeat embedding and head.
_MTP = r"model\.layers\.\d+\.(embed_tokens|shared_head\.head)\.weight"

FAMILIES: Mapping[str, Family] = {
    family.architecture: family
    for family in (
        Family(
            "CohereForCausalLM",
            "Command-R, Command-R+, Aya-23",
            ties_by_default=True,
            implied_ids=_COHERE_IDS,
        ),
        Family(
            "Cohere2ForCausalLM",
            "Command-R7B, Command-A, Aya-Expanse",
            ties_by_default=True,
            implied_ids=_COHERE_IDS,
        ),
        Family(
            "DeepseekV3ForCausalLM",
            "DeepSeek-V3, DeepSeek-R1, Kanana-2",
            implied_ids={"bos_token_id": 0, "eos_token_id": 1},
            copies=_MTP,
            not_served=_NOT_RUN,
        ),
        Family(
            "Exaone4ForCausalLM", "EXAONE-4", implied_ids={"bos_token_id": 0, "eos_token_id": 2}
        ),
        Family("Gemma2ForCausalLM", "Gemma-2", ties_by_default=True, implied_ids=_GEMMA_IDS),
        Family(
            "Gemma3ForCausalLM",
            "Gemma-3 270M and 1B",
            ties_by_default=True,
            implied_ids=_GEMMA_IDS,
            real="Gemma-3 270M",
        ),
        Family(
            "Gemma3ForConditionalGeneration",
            "Gemma-3 4B to 27B",
            embedding="language_model.model.embed_tokens.weight",
            head="language_model.lm_head.weight",
            text_config="text_config",
            spellings=(("model.language_model.embed_tokens.weight", "lm_head.weight"),),
            ties_by_default=True,
            implied_ids={
                "boi_token_index": 255_999,
                "eoi_token_index": 256_000,
                "image_token_index": 262_144,
                "text_config": _GEMMA_IDS,
            },
        ),
        Family(
            "GptOssForCausalLM",
            "gpt-oss",
            not_served=_NOT_RUN,
            body_refused="its experts are fused tensors with biases, which kprune knows nothing of",
        ),
        Family("HyperCLOVAXForCausalLM", "HyperCLOVA X SEED Think", implied_ids=_LLAMA_IDS),
        Family(
            "LlamaForCausalLM",
            "Llama-3, Kanana-1.5, HyperCLOVA X SEED Text",
            implied_ids=_LLAMA_IDS,
        ),
        Family("MinistralForCausalLM", "Ministral 8B", implied_ids=_LLAMA_IDS, not_served=_NOT_RUN),
        Family(
            "Ministral3ForCausalLM",
            "the text models of Ministral 3",
            implied_ids={**_LLAMA_IDS, "pad_token_id": 11},
            not_served=_NOT_RUN,
        ),
        Family("MistralForCausalLM", "Mistral 7B, Mistral-Nemo", implied_ids=_LLAMA_IDS),
        Family(
            "Olmo2ForCausalLM", "OLMo-2", implied_ids={"pad_token_id": 1, "eos_token_id": 50_279}
        ),
        Family(
            "Phi3ForCausalLM",
            "Phi-3, Phi-4, Phi-4-mini",
            implied_ids={"bos_token_id": 1, "eos_token_id": 32_000, "pad_token_id": 32_000},
        ),
        Family("Qwen2ForCausalLM", "Qwen2, Qwen2.5", real="Qwen2.5-Coder 1.5B"),
        Family("Qwen3ForCausalLM", "Qwen3"),
        Family("Qwen3MoeForCausalLM", "Qwen3-MoE"),
        Family(
            "Qwen3NextForCausalLM",
            "Qwen3-Next",
            not_served="its CPU build has linear attention in bfloat16 only, too coarse to compare",
        ),
        Family(
            "SmolLM3ForCausalLM",
            "SmolLM3",
            ties_by_default=True,
            implied_ids={
                "bos_token_id": 128_000,
                "eos_token_id": 128_001,
                "pad_token_id": 128_004,
            },
        ),
    )
}

_OWN_CODE = "its published models need code of their own, which kprune does not run"
# Known, and refused for a reason that the table cannot remove.
REFUSED: Mapping[str, str] = {
    **dict.fromkeys(
        ("T5ForConditionalGeneration", "T5EncoderModel", "MT5ForConditionalGeneration",
         "XLMRobertaModel", "XLMRobertaForMaskedLM"),
        f"its tokenizer is Unigram: {NOT_BPE['Unigram']}",
    ),
    **dict.fromkeys(
        ("BertModel", "BertForMaskedLM"),
        f"its tokenizer is WordPiece: {NOT_BPE['WordPiece']}",
    ),
    **dict.fromkeys(
        ("Gemma3nForCausalLM", "Gemma3nForConditionalGeneration"),
        "each layer has a vocabulary of its own, which kprune does not prune",
    ),
    **dict.fromkeys(
        ("HCXVisionForCausalLM", "KananaVForConditionalGeneration", "Phi4MMForCausalLM"), _OWN_CODE
    ),
    "Mistral3ForConditionalGeneration": "it also reads images, and was not tried",
}  # fmt: skip


def find_family(config: Mapping[str, Any], source: str) -> Family:
    """The family of a parsed config.json; `KPruneError` for one that the table does not know."""
    architectures = config.get("architectures")
    if not isinstance(architectures, list) or not architectures:
        raise KPruneError(f"{source}: no 'architectures', so the model's family is unknown")
    if (family := _known_family(architectures)) is not None:
        return family
    first = architectures[0]
    named = first[:64] if isinstance(first, str) and first.isprintable() else shown(first)
    if (reason := REFUSED.get(named)) is not None:
        raise KPruneError(f"{source}: kprune cannot prune {named}: {reason}")
    raise KPruneError(
        f"{source}: kprune does not know the family {named} (known: "
        f"{', '.join(sorted(FAMILIES))}); to add it, see vllm_kprune/checkpoint/families.py"
    )


def implied_ids(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The token ids that a parsed config.json implies; none if its family is not known."""
    family = _known_family(config.get("architectures"))
    return family.implied_ids if family else {}


def _known_family(architectures: Any) -> Family | None:
    names = architectures if isinstance(architectures, list) else []
    known = (FAMILIES[name] for name in names if isinstance(name, str) and name in FAMILIES)
    return next(known, None)


def with_implied_ids(
    config: Mapping[str, Any], implied: Mapping[str, Any], known: Container[int]
) -> dict[str, Any]:
    """A parsed config.json with the token ids that it leaves to transformers' defaults.

    After pruning, transformers' defaults would name other tokens, so the ids are written out. An id
    that is not `known` to the tokenizer names no token, before or after, and is left out.

    >>> with_implied_ids({"eos_token_id": 9}, {"bos_token_id": 1, "eos_token_id": 2}, range(10))
    {'bos_token_id': 1, 'eos_token_id': 9}
    """
    filled: dict[str, Any] = {}
    for key, item in implied.items():
        if isinstance(item, Mapping):
            part = config.get(key)
            filled[key] = with_implied_ids(part if isinstance(part, Mapping) else {}, item, known)
        # Gemma-3's class takes image_token_id as another name of image_token_index. If the config
        # has the key itself, it wins in the last line.
        elif key.replace("_index", "_id") not in config and item in known:
            filled[key] = item
    # Nested parts were merged with the config's own already, so they come last.
    nested = {key: item for key, item in filled.items() if isinstance(item, dict)}
    return {**filled, **config, **nested}
