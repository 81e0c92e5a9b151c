"""Sizes and predicted speed from headers of tied and untied checkpoints; times of decode steps."""

from pathlib import Path

import pytest

from vllm_kprune.checkpoint.base import BaseModel
from vllm_kprune.checkpoint.families import FAMILIES
from vllm_kprune.checkpoint.shards import StoredTensor
from vllm_kprune.checkpoint.sizes import Change, weight_sizes
from vllm_kprune.compare.endpoint.token_times import token_times
from vllm_kprune.tokenizer.bpe import BpeTokenizer

ROWS, HIDDEN, BODY = 100, 8, 400
# One token past the embedding, as in Gemma-3.
TOKENIZER = BpeTokenizer({}, {str(i): i for i in range(ROWS + 1)}, (), (), "byte_fallback")


def tensor(name: str, *shape: int) -> StoredTensor:
    count = shape[0] * (shape[1] if len(shape) > 1 else 1)
    return StoredTensor(name, "BF16", shape, 0, 2 * count)


def base(*, tied: bool, stored_head: bool) -> BaseModel:
    tensors = [tensor("model.embed_tokens.weight", ROWS, HIDDEN), tensor("model.norm.weight", BODY)]
    if stored_head:
        tensors.append(tensor("lm_head.weight", ROWS, HIDDEN))
    return BaseModel(
        reference="m",
        revision=None,
        folder=Path("m"),
        config={"tie_word_embeddings": tied},
        family=FAMILIES["LlamaForCausalLM"],
        tokenizer=TOKENIZER,
        tensors={info.name: info for info in tensors},
        shards=(),
    )


@pytest.mark.parametrize("stored_head", [False, True])
def test_tied_weights_are_counted_once_even_when_stored_twice(stored_head: bool) -> None:
    found = weight_sizes(base(tied=True, stored_head=stored_head), 50)
    assert found.parameters == Change(1200, 800)
    assert found.bytes == found.step_bytes == Change(2400, 1600)
    assert found.vocabulary_bytes == Change(1600, 800)
    assert found.head_bytes == Change(2400, 3200)  # the kept rows are a copy


def test_of_an_untied_model_a_step_reads_the_head_but_not_the_embedding() -> None:
    found = weight_sizes(base(tied=False, stored_head=True), 50)
    assert found.parameters == Change(2000, 1200)
    assert found.bytes == Change(4000, 2400)
    assert found.step_bytes == Change(2400, 1600)
    assert found.head_bytes == Change(4000, 3200)


def test_keeping_everything_predicts_no_gain() -> None:
    assert weight_sizes(base(tied=True, stored_head=False), ROWS).step_bytes.ratio == 1


def test_a_step_is_the_time_between_tokens_of_the_same_sequence() -> None:
    pieces = [(0.0, 0, 1), (0.25, 1, 1), (0.5, 0, 1), (0.75, 1, 1), (0.8, 1, 0), (1.75, 1, 2)]
    assert token_times(pieces) == [0.5, 0.5, 0.5, 0.5]
    assert token_times([]) == []
