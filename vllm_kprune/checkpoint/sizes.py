"""The size of a model before and after pruning, from the headers of its files alone.

A decode step of a dense model at batch 1 reads every weight matrix once and computes little, so on
one machine its time is proportional to the bytes of the body and the LM head. It reads only one row
of the embedding. A tied head is the same tensor, and is counted once even if a checkpoint stores it
twice, because memory holds it once. Not covered: experts that a step skips, and encoders for images
or sound, which text decoding does not read.
"""

from dataclasses import dataclass

from vllm_kprune.checkpoint.base import BaseModel

__all__ = ["Change", "WeightSizes", "weight_sizes"]


@dataclass(frozen=True)
class Change:
    """A number for the original, and for the pruned model if there is one."""

    original: float
    pruned: float | None = None

    @property
    def last(self) -> float:
        """The number for the pruned model if there is one, else for the original."""
        return self.original if self.pruned is None else self.pruned

    @property
    def ratio(self) -> float | None:
        """Pruned divided by original; None if that is not known."""
        if self.pruned is None or not self.original:
            return None
        return self.pruned / self.original


@dataclass(frozen=True)
class WeightSizes:
    """Weights as stored, before and after pruning; all but `parameters` in bytes.

    `bytes` is the whole model, `vocabulary_bytes` its embedding and LM head, those of MTP layers
    included, and `step_bytes` what a plain decode step at batch 1 reads. `head_bytes` is the whole
    model if only the head is pruned: the embedding stays, so a tied head is a copy of the kept
    rows.
    """

    parameters: Change
    bytes: Change
    vocabulary_bytes: Change
    head_bytes: Change
    step_bytes: Change


def weight_sizes(base: BaseModel, rows: int | None = None) -> WeightSizes:
    """The sizes of a model, and of what is left of it if `rows` rows of its vocabulary are kept.

    Rows without a token, which pad the embedding, count for the original.
    """
    # Those of MTP layers come first: a plain decode step does not read them.
    matrices = (*base.copies, *base.embedding_and_head[: 1 if base.tied else 2])
    names = {info.name for info in base.vocabulary_tensors}
    body = [info for name, info in base.tensors.items() if name not in names]
    body_bytes, width = sum(info.bytes for info in body), sum(info.shape[1] for info in matrices)
    before = [info.bytes for info in matrices]
    # All rows of a vocabulary matrix have the same size, whatever its type.
    after = [size // base.rows * (base.rows if rows is None else rows) for size in before]
    # The head comes last; tied, it is the only one, and its kept rows are copied.
    head_alone = [*(before if base.tied else before[:-1]), after[-1]]

    def change(original: int, pruned: int) -> Change:
        return Change(original, None if rows is None else pruned)

    parameters = sum(info.parameters for info in body)
    return WeightSizes(
        parameters=change(parameters + width * base.rows, parameters + width * (rows or 0)),
        bytes=change(body_bytes + sum(before), body_bytes + sum(after)),
        vocabulary_bytes=change(sum(before), sum(after)),
        head_bytes=change(body_bytes + sum(before), body_bytes + sum(head_alone)),
        step_bytes=change(body_bytes + before[-1], body_bytes + after[-1]),
    )
