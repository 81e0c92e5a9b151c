"""The size of a model before and after pruning, and the decode speed-up that its bytes predict.

All numbers come from the headers of the checkpoint and the rows that the manifest keeps. A decode
step of a dense model at batch 1 reads every weight matrix once and computes little, so on one
machine its time is proportional to the bytes of the body and the LM head. It reads only one row of
the embedding. A tied head is the same tensor, and is stored and counted once. Not covered: experts
that a step skips, and encoders for images or sound, which text decoding does not read.
"""

from dataclasses import dataclass

from vllm_kprune.checkpoint.base import BaseModel
from vllm_kprune.checkpoint.manifest import Manifest

__all__ = ["ModelSize", "model_sizes", "predicted_ratio"]


@dataclass(frozen=True)
class ModelSize:
    """Vocabulary and weights of one model; a decode step at batch 1 reads `step_bytes`."""

    tokens: int
    rows: int
    parameters: int
    weight_bytes: int
    step_bytes: int


def model_sizes(base: BaseModel, manifest: Manifest) -> tuple[ModelSize, ModelSize]:
    """Sizes of the original and of the pruned model."""
    original = _size(base, len(base.tokenizer.tokens), base.rows)
    return original, _size(base, len(manifest.kept_ids), len(manifest.kept_rows))


def predicted_ratio(original: ModelSize, pruned: ModelSize) -> float:
    """Decode speed of the pruned model over the original's, if reading bytes were its only cost.

    >>> predicted_ratio(ModelSize(9, 9, 9, 9, 536), ModelSize(9, 9, 9, 9, 268))
    2.0
    """
    return original.step_bytes / pruned.step_bytes


def _size(base: BaseModel, tokens: int, rows: int) -> ModelSize:
    matrices = base.embedding_and_head[:1] if base.tied else base.embedding_and_head
    # The LM head comes last; tied, it is the only one.
    head_bytes = matrices[-1].bytes // base.rows * rows
    matrices += base.copies
    names = {info.name for info in base.vocabulary_tensors}
    body = [info for info in base.tensors.values() if info.name not in names]
    body_bytes = sum(info.bytes for info in body)
    # All rows of a vocabulary matrix have the same size, whatever its type.
    kept_bytes = [info.bytes // base.rows * rows for info in matrices]
    return ModelSize(
        tokens=tokens,
        rows=rows,
        parameters=sum(info.parameters for info in body)
        + sum(rows * info.shape[1] for info in matrices),
        weight_bytes=body_bytes + sum(kept_bytes),
        step_bytes=body_bytes + head_bytes,
    )
