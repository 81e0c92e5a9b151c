"""How vLLM's LM head is made of the kept rows while a model is loaded.

An untied head is made with as many rows as are kept, and its weight loader gets only these, so the
others never reach the device. A tied head is the embedding, which needs all of its rows, so the
kept ones are copied once the model is loaded: decoding gets faster, and memory grows by the copy.
"""

from collections.abc import Callable
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
from vllm_kprune.serving.head.kept import KeptHead
from vllm_kprune.serving.head.shards import Shards, deal
from vllm_kprune.serving.head.state import ATTRIBUTE, Loading, serve_profiles

__all__ = ["attach_head", "copied_rows", "make_head", "shards_of"]


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
    ids = _stored_ids(state.rows, shards_of(layer, count))
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
    serve_profiles(state.rows.profiles)
    if not is_last_stage():
        return None
    layers = state.layers or _tied_layers(model, state.vocabulary)
    layer, whole, rows = layers[0], None, state.rows
    if not state.layers:
        # A profile of all tokens needs no copy: the embedding has its rows.
        count = max((end for end in rows.ends if end < state.vocabulary), default=0)
        whole = layer if max(rows.ends) == state.vocabulary else None
        if not count:
            return None
        with set_current_vllm_config(vllm_config):
            layer = copied_rows(layer, rows, count)
    count = layer.org_vocab_size
    head = KeptHead(layer, rows, shards_of(layer, count), state.vocabulary, whole)
    for one in layers:
        one.__dict__[ATTRIBUTE] = head
    return head


def shards_of(layer: Any, count: int) -> Shards:
    """How `count` rows are dealt out to the ranks that share a layer of vLLM's."""
    return deal(count, layer.tp_size, layer.num_embeddings_per_partition)


def _stored_ids(rows: HeadRows, shards: Shards) -> torch.Tensor:
    """The token id of each row of vLLM's layer, the ranges of all ranks one after another."""
    return torch.from_numpy(rows.ids[shards.order]).long()


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


def copied_rows(embedding: Any, rows: HeadRows, count: int) -> Any:
    """A head with the first rows of an order; tensor-parallel ranks get equal parts of them."""
    weight = embedding.weight
    with weight.device:
        head = ParallelLMHead(
            count,
            embedding.embedding_dim,
            params_dtype=weight.dtype,
            padding_size=_padding(count),
        )
    ids = _stored_ids(rows, shards_of(head, count))
    head.weight_loader(head.weight, _gathered(embedding, ids))
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
