"""Does a LoRA adapter that was trained on the original fit the pruned model?

It does if it leaves embedding and LM head alone, because everything between them is unchanged. An
adapter of the vocabulary has a row or column for every original token, so it is refused. That is
decided by the names of its tensors and by its configuration.
"""

from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from vllm_kprune.checkpoint.families import FAMILIES
from vllm_kprune.errors import KPruneError
from vllm_kprune.storage.bounded import MODEL_FILE, read_object

__all__ = ["check_adapter"]

# The modules' own names ("embed_tokens", "lm_head"), without what they are nested in.
_VOCABULARY = frozenset(
    name.split(".")[-2] for family in FAMILIES.values() for name in (family.embedding, family.head)
)
_WEIGHTS = "adapter_model.safetensors"
_PICKLED = ("adapter_model.bin", "adapter_model.pt")


def check_adapter(folder: Path) -> None:
    """Raise `KPruneError` if the adapter in `folder` (PEFT's files) touches the vocabulary.

    A folder without an adapter is accepted: vLLM reports that itself.
    """
    if not (folder / _WEIGHTS).is_file():
        for name in _PICKLED:
            if (folder / name).is_file():
                raise KPruneError(
                    f"LoRA adapter {folder}: {name} is pickled, so kprune cannot check whether it "
                    f"fits a pruned vocabulary; save it as {_WEIGHTS}"
                )
        return
    config = read_object(folder / "adapter_config.json", MODEL_FILE)
    touched = next(chain(_in_config(config), _in_weights(folder / _WEIGHTS)), None)
    if touched:
        raise KPruneError(
            f"LoRA adapter {folder} changes the vocabulary ({touched}), but a pruned model lacks "
            "some of its rows; use an adapter without embedding and LM head, or serve the original "
            "model"
        )


def _in_config(config: Mapping[str, Any]) -> Iterator[str]:
    for key in ("modules_to_save", "target_modules"):
        # PEFT also takes a string here: a regular expression, or "all-linear". What it matched
        # shows in the names of the tensors.
        names = config.get(key)
        for name in names if isinstance(names, list) else ():
            if isinstance(name, str) and name.split(".")[-1] in _VOCABULARY:
                yield f"{key}: {name}"
    # Single rows of the embedding, named by ids of the original tokenizer.
    if config.get("trainable_token_indices"):
        yield "trainable_token_indices"


def _in_weights(path: Path) -> Iterator[str]:
    try:
        # Only names are read, so it does no harm that numpy lacks bfloat16.
        with safe_open(path, framework="numpy") as file:
            names = sorted(file.keys())
    except (SafetensorError, OSError) as error:
        raise KPruneError(f"{path} is not a readable safetensors file: {error}") from None
    # Any part counts: base_model.model.model.embed_tokens.lora_embedding_A has it in the middle.
    yield from (name for name in names if not _VOCABULARY.isdisjoint(name.split(".")))
