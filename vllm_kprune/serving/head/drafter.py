"""The LM head of a drafter, pruned: it proposes kept tokens only, and the target checks them.

A drafter has a head of its own, or vLLM gives it the target's once both are loaded. So the pruned
head does not belong to a layer, as the target's does, but to the drafter's `LogitsProcessor`s: they
are asked for logits of a layer, and compute those of a copy of its kept rows. Memory grows by that
copy, whether the head is tied or not. A target whose own head is pruned shares that one.
"""

from typing import Any
from weakref import WeakKeyDictionary

import torch
from vllm.config import set_current_vllm_config
from vllm.model_executor.layers.logits_processor import LogitsProcessor
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead

from vllm_kprune.checkpoint.head import HeadRows
from vllm_kprune.errors import KPruneError
from vllm_kprune.serving.head.kept import KeptHead
from vllm_kprune.serving.head.making import copied_rows, shards_of
from vllm_kprune.serving.head.state import ATTRIBUTE

__all__ = ["attach_draft_heads"]


class DraftHeads:
    """The pruned heads of a drafter, by the layers that they are copied from."""

    def __init__(self, rows: HeadRows, vllm_config: Any) -> None:
        self._rows, self._vllm_config = rows, vllm_config
        self._heads: WeakKeyDictionary[Any, KeptHead] = WeakKeyDictionary()

    def of(self, layer: Any) -> KeptHead | None:
        """The pruned head for a layer; None while a CUDA graph is captured that lacks one."""
        shared: KeptHead | None = layer.__dict__.get(ATTRIBUTE)
        if shared is not None:
            return shared
        head = self._heads.get(layer)
        if head is None:
            if layer.weight.is_cuda and torch.cuda.is_current_stream_capturing():
                return None
            head = self._heads[layer] = self._copied(layer)
        return head

    def _copied(self, layer: Any) -> KeptHead:
        vocabulary, bias = layer.org_vocab_size, getattr(layer, "bias", None)
        rows = self._rows.within(vocabulary)
        if len(layer.weight) != layer.num_embeddings_per_partition or bias is not None:
            raise KPruneError(
                "--kprune-draft-head: the drafter's LM head is quantised or has a bias, and its "
                "rows cannot be copied; leave the option out"
            )
        with set_current_vllm_config(self._vllm_config):
            copied = copied_rows(layer, rows, len(rows.ids))
        return KeptHead(copied, rows, shards_of(copied, len(rows.ids)), vocabulary)


def attach_draft_heads(model: Any, rows: HeadRows, vllm_config: Any) -> None:
    """Let a loaded drafter propose only the tokens of `rows`.

    Raises `KPruneError` for a drafter without an LM head, or with a small vocabulary of its own.
    """
    processors = [one for one in model.modules() if isinstance(one, LogitsProcessor)]
    if not processors:
        raise KPruneError(
            f"--kprune-draft-head: the drafter ({type(model).__name__}) has no LM head to prune; "
            "leave the option out"
        )
    if getattr(model, "draft_id_to_target_id", None) is not None:
        raise KPruneError(
            "--kprune-draft-head: the drafter has a small vocabulary of its own (EAGLE-3); leave "
            "the option out"
        )
    heads = DraftHeads(rows, vllm_config)
    for processor in processors:
        processor.__dict__[ATTRIBUTE] = heads
    # Now rather than at the first draft. What vLLM replaces by the target's head is freed then.
    for layer in model.modules():
        if isinstance(layer, ParallelLMHead) and layer.weight.numel():
            heads.of(layer)
