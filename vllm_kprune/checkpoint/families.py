"""The model families whose vocabulary tensors kprune knows: one row each.

To add a family: its architecture (as in config.json), the names of its embedding and LM-head
tensors in the checkpoint, and the key under which config.json nests the text model, if it does.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vllm_kprune.errors import KPruneError

__all__ = ["FAMILIES", "Family", "find_family"]


@dataclass(frozen=True)
class Family:
    """Where a family keeps its vocabulary: tensor names, and the text model's place in the config.

    `head` may be absent from a checkpoint whose head is tied to the embedding.
    """

    architecture: str
    embedding: str = "model.embed_tokens.weight"
    head: str = "lm_head.weight"
    text_config: str | None = None


FAMILIES: Mapping[str, Family] = {
    family.architecture: family
    for family in (
        Family("Gemma3ForCausalLM"),
        Family("LlamaForCausalLM"),
        Family("Qwen3ForCausalLM"),
    )
}


def find_family(config: Mapping[str, Any], source: str) -> Family:
    """The family of a parsed config.json; `KPruneError` for one that the table does not know."""
    architectures = config.get("architectures")
    if not isinstance(architectures, list) or not architectures:
        raise KPruneError(f"{source}: no 'architectures', so the model's family is unknown")
    for name in architectures:
        if isinstance(name, str) and name in FAMILIES:
            return FAMILIES[name]
    raise KPruneError(
        f"{source}: kprune does not know the family {architectures[0]} (known: "
        f"{', '.join(sorted(FAMILIES))}); a row in vllm_kprune/checkpoint/families.py adds it"
    )
