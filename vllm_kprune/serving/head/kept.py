"""A pruned head of vLLM's: how it is made while the model is loaded, and what it computes.

An untied head is made with as many rows as are kept, and its weight loader gets only these, so the
others never reach the device. A tied head is the embedding, which needs all of its rows, so the
kept ones are copied once the model is loaded: decoding gets faster, and memory grows by the copy.

The layer that a model passes to vLLM's `LogitsProcessor` leads to its `KeptHead`. So a drafter that
shares the target's head (EAGLE, MTP) proposes kept tokens, too.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from vllm.config import set_current_vllm_config
from vllm.distributed.communication_op import tensor_model_parallel_all_reduce
from vllm.model_executor.layers.linear import UnquantizedLinearMethod
from vllm.model_executor.layers.vocab_parallel_embedding import (
    DEFAULT_VOCAB_PADDING_SIZE,
    ParallelLMHead,
    UnquantizedEmbeddingMethod,
    VocabParallelEmbedding,
)

from vllm_kprune.checkpoint.head import HeadRows
from vllm_kprune.errors import KPruneError
from vllm_kprune.serving.compat.engine import is_last_stage
from vllm_kprune.serving.head.expand import expand, inverse_order
from vllm_kprune.serving.head.state import ATTRIBUTE, Loading

__all__ = ["KeptHead", "attach_head", "make_head"]


@dataclass(frozen=True, eq=False)
class KeptHead:
    """The kept rows as a layer of vLLM's, and how its logits become those of the vocabulary.

    `ids` [rows], int64, are the token ids of the layer's rows, `inverse` [vocabulary] has for each
    id its row, or `rows` if it is not kept.
    """

    layer: Any
    ids: torch.Tensor
    inverse: torch.Tensor

    def logits(
        self, forward: Callable[..., Any], processor: Any, hidden: torch.Tensor, *rest: Any
    ) -> torch.Tensor | None:
        """Logits [n, vocabulary] for hidden states [n, hidden]; -inf for all other ids.

        `forward` is that of vLLM's `LogitsProcessor`. None on a rank to which logits are not sent.
        """
        # vLLM's wrapper for LoRA would add an adapter's part of the full head; adapters that have
        # one are refused.
        processor = getattr(processor, "base_layer", processor)
        logits = forward(processor, self.layer, hidden, self.layer.bias, *rest)
        if logits is None:
            return None
        # The row after the last is padding, and its logit serves for all ids that are not kept. It
        # becomes -inf only here: soft capping would have made a finite number of it.
        logits = logits[:, : len(self.ids) + 1]
        logits[:, -1] = -torch.inf
        return expand(logits, self.inverse)


def make_head(
    state: Loading,
    original: Callable[..., None],
    layer: Any,
    num_embeddings: int,
    *rest: Any,
    **how: Any,
) -> None:
    """Around `ParallelLMHead.__init__`: fewer rows for the head of the model being loaded."""
    if state.tied or num_embeddings != state.vocabulary:
        original(layer, num_embeddings, *rest, **how)
        return
    count = len(state.rows.ids)
    original(layer, count, *rest, **{**how, "padding_size": _padding(count)})
    if not isinstance(layer.quant_method, UnquantizedEmbeddingMethod | UnquantizedLinearMethod):
        raise KPruneError(
            f"--kprune-head: the LM head is quantised ({type(layer.quant_method).__name__}), and "
            "rows cannot be gathered from it; serve a checkpoint whose head is not quantised"
        )
    ids = torch.from_numpy(state.rows.ids).long()
    for parameter in (layer.weight, layer.bias):
        if parameter is not None:
            parameter.weight_loader = _gathering(parameter.weight_loader, ids, state.vocabulary)
    state.layers.append(layer)


def _padding(rows: int) -> int:
    """What vLLM is to round the number of rows up to, so that at least one is padding.

    >>> _padding(100), _padding(128)
    (64, 256)
    """
    size = DEFAULT_VOCAB_PADDING_SIZE
    while rows % size == 0:
        size *= 2
    return size


def _gathering(
    load: Callable[..., None], ids: torch.Tensor, vocabulary: int
) -> Callable[..., None]:
    """A weight loader that is given the whole head, and loads the rows `ids` of it."""

    def load_rows(parameter: Any, loaded: torch.Tensor) -> None:
        if len(loaded) != vocabulary:
            raise KPruneError(
                f"--kprune-head: the checkpoint's LM head has {len(loaded)} rows, the model's "
                f"configuration says {vocabulary}"
            )
        # vLLM gives a tensor that is mapped from the file, so only these rows are read.
        load(parameter, loaded[ids.to(loaded.device)])

    return load_rows


def attach_head(model: Any, state: Loading, vllm_config: Any) -> KeptHead | None:
    """Let a loaded model use its pruned head; None on a pipeline stage that has no head."""
    if not is_last_stage():
        return None
    layers = state.layers or _tied_layers(model, state.vocabulary)
    layer = layers[0]
    if not state.layers:
        with set_current_vllm_config(vllm_config):
            layer = _copied_rows(layer, state.rows)
    ids = torch.from_numpy(state.rows.ids).to(layer.weight.device).long()
    head = KeptHead(layer, ids, inverse_order(ids, state.vocabulary))
    for one in layers:
        one.__dict__[ATTRIBUTE] = head
    return head


def _tied_layers(model: Any, vocabulary: int) -> list[Any]:
    """The embedding, and the head that shares its weight if there is one: models pass either."""
    found = [
        one
        for one in model.modules()
        if isinstance(one, VocabParallelEmbedding) and one.org_vocab_size == vocabulary
    ]
    plain = all(getattr(one, "bias", None) is None for one in found)
    if len({one.weight.data_ptr() for one in found}) != 1 or not plain:
        raise KPruneError(
            f"--kprune-head: expected one embedding of {vocabulary} rows that is also the LM head "
            f"and has no bias, found {len(found)} layers; this model cannot have a pruned head"
        )
    return found


def _copied_rows(embedding: Any, rows: HeadRows) -> Any:
    """A head with the kept rows of an embedding; tensor-parallel ranks get equal parts of them."""
    weight = embedding.weight
    with weight.device:
        head = ParallelLMHead(
            len(rows.ids),
            embedding.embedding_dim,
            params_dtype=weight.dtype,
            padding_size=_padding(len(rows.ids)),
        )
    head.weight_loader(head.weight, _gathered(embedding, torch.from_numpy(rows.ids).long()))
    head.quant_method.process_weights_after_loading(head)
    return head


def _gathered(embedding: Any, ids: torch.Tensor) -> torch.Tensor:
    """Rows [ids, hidden] of an embedding of which each rank has a range."""
    shard, weight = embedding.shard_indices, embedding.weight
    ids = ids.to(weight.device)
    mine = (ids >= shard.org_vocab_start_index) & (ids < shard.org_vocab_end_index)
    rows = weight.new_zeros((len(ids), embedding.embedding_dim))
    rows[mine] = weight[ids[mine] - shard.org_vocab_start_index]
    # A row is zero on all ranks but one, so the sum is exact.
    return tensor_model_parallel_all_reduce(rows) if embedding.tp_size > 1 else rows
