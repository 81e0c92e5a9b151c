"""Logits of kept rows become logits of all ids: each in its place, -inf for the others."""

import numpy as np
import pytest
import torch

from vllm_kprune.serving.head.expand import expand, expand_each, inverse_order


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("count", [0, 1, 5])
def test_each_logit_is_at_its_id_and_all_others_are_minus_infinity(
    dtype: torch.dtype, count: int
) -> None:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randperm(300, generator=generator)[:77]
    logits = torch.randn(count, 78, generator=generator).to(dtype)
    logits[:, -1] = -torch.inf
    expected = torch.full((count, 300), -torch.inf, dtype=dtype)
    expected[:, ids] = logits[:, :-1]
    whole = expand(logits, inverse_order(ids.numpy(), np.arange(77), 300, unused=77))
    assert whole.dtype == dtype
    assert torch.equal(whole, expected)


def test_the_way_of_devices_gives_the_same_as_that_of_the_cpu() -> None:
    logits = torch.randn(4, 9, generator=torch.Generator().manual_seed(1))
    ids = np.array([5, 0, 3, 7, 1, 9, 11, 2])
    inverse = inverse_order(ids, np.arange(8), 12, unused=8)
    assert torch.equal(logits.index_select(1, inverse), expand(logits, inverse))


def test_rows_with_an_inverse_of_their_own_are_expanded_by_it() -> None:
    logits = torch.randn(3, 4, generator=torch.Generator().manual_seed(2))
    inverses = {
        0: inverse_order(np.array([1, 4]), np.array([0, 1]), 6, unused=3),
        5: inverse_order(np.array([1, 2, 4]), np.array([0, 2, 1]), 6, unused=3),
    }
    found = expand_each(logits, inverses, [5, 0, 5])
    for row, key in enumerate([5, 0, 5]):
        assert torch.equal(found[row], logits[row][inverses[key]])
