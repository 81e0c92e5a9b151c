"""Checks of the tensors with a row for each token: embedding, LM head, and those of MTP layers.

One list of rows cuts all of them, so they must be plain, equally long and complete.
"""

from collections.abc import Mapping
from pathlib import Path

from vllm_kprune.checkpoint.families import Family
from vllm_kprune.checkpoint.shards import StoredTensor
from vllm_kprune.errors import KPruneError
from vllm_kprune.tokenizer.bpe import BpeTokenizer

__all__ = ["check_rows", "check_vocabulary"]

# float8 is plain too, as long as no scales come with it (`_refuse_companions`): rows are moved as
# bytes.
_PLAIN_DTYPES = {"F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"}
_MOST_WITHOUT_ROW = 16


def check_vocabulary(tensors: Mapping[str, StoredTensor], family: Family, folder: Path) -> None:
    """Refuse matrices that are not plain or not equally long, and those that are not known."""
    copies = family.copies_in(tensors)
    for name in (family.embedding, family.head, *copies):
        _refuse_companions(name, tensors, folder)
    if family.embedding not in tensors:
        named = " or ".join((family.embedding, *(embedding for embedding, _ in family.spellings)))
        raise KPruneError(f"{folder}: no tensor {named}, the embedding of its family")
    embedding = tensors[family.embedding]
    known = [tensors[name] for name in (family.head, *copies) if name in tensors]
    for info in (embedding, *known):
        if len(info.shape) != 2 or 0 in info.shape or info.dtype not in _PLAIN_DTYPES:
            raise KPruneError(
                f"{folder}: {info.name} is {info.dtype}{list(info.shape)}; expected a plain "
                "[rows, hidden] tensor"
            )
        # One list of rows cuts both tensors.
        if info.shape[0] != embedding.shape[0]:
            raise KPruneError(
                f"{folder}: {info.name} has {info.shape[0]} rows, {embedding.name} has "
                f"{embedding.shape[0]}"
            )
    names = {info.name for info in (embedding, *known)}
    for name, info in tensors.items():
        # Left whole, it would go by the ids of the original.
        if info.shape == embedding.shape and name not in names:
            raise KPruneError(
                f"{folder}: {name} has the shape of the embedding {embedding.name}, "
                f"{list(info.shape)}, but {family.architecture} is not known to have another; "
                "please report it with the model's name"
            )


def check_rows(embedding: StoredTensor, tokenizer: BpeTokenizer, folder: Path) -> None:
    """Refuse a tokenizer of another model: besides added tokens, hardly any lack a row."""
    rows = embedding.shape[0]
    without = sum(i >= rows for i in tokenizer.vocab.values() if i not in tokenizer.added_ids)
    if without > _MOST_WITHOUT_ROW:
        raise KPruneError(
            f"{folder}: {embedding.name} has {rows} rows, too few for {without} tokens of the "
            "tokenizer; is tokenizer.json that of another model?"
        )


def _refuse_companions(name: str, tensors: Mapping[str, StoredTensor], folder: Path) -> None:
    """Refuse what a quantised layer stores with its weight: scales, zero points, packed numbers.

    Formats differ in the names, but all of them put these tensors into the layer, as they do a
    bias.
    """
    # The dot stays: "lm_head." finds lm_head.weight_scale, but not lm_head_2.weight.
    stem = name.removesuffix("weight")
    for other in sorted(tensors):
        if other == name or not other.startswith(stem):
            continue
        if other == stem + "bias":
            raise KPruneError(f"{folder}: {other}: kprune does not prune a bias of the vocabulary")
        raise KPruneError(
            f"{folder}: {name} is quantised ({other}), so its rows cannot be gathered; "
            "use a checkpoint whose embedding and head are plain"
        )
