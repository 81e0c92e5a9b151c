"""Masks and methods on single matrices: exact counts, cases worked out by hand, the error left."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_kprune.errors import KPruneError
from vllm_kprune.sparsify.methods import METHODS
from vllm_kprune.sparsify.pattern import SparsityPattern, make_pattern
from vllm_kprune.sparsify.statistics import ColumnSquares, Hessian

PATTERNS = [make_pattern(0.5, None), make_pattern(0.3, None), make_pattern(None, "2:4"),
            make_pattern(None, "4:8")]  # fmt: skip
CPU = torch.device("cpu")


def pruned(
    method: str, weight: torch.Tensor, inputs: torch.Tensor, pattern: SparsityPattern
) -> tuple[torch.Tensor, torch.Tensor]:
    """The weights after pruning, and the mask."""
    make = METHODS[method].statistic or ColumnSquares
    statistic = make(weight.shape[1], CPU)
    for sample in inputs.split(16):
        statistic.add(sample)
    prune, _ = METHODS[method].pruner(statistic)
    result = weight.clone()
    return result, prune(result, pattern)


def expected_zeros(method: str, shape: tuple[int, int], pattern: SparsityPattern) -> list[int]:
    """Zeros of each part that is compared within itself: groups, rows, blocks or the matrix."""
    rows, width = shape
    if pattern.group:
        return [pattern.group // 2] * (rows * width // pattern.group)
    if method == "wanda":
        return [int(width * pattern.share + 1e-6)] * rows
    blocks = [min(128, width - first) for first in range(0, width, 128)]
    parts = [rows * size for size in blocks] if method == "sparsegpt" else [rows * width]
    return [int(part * pattern.share + 1e-6) for part in parts]


def counted_zeros(method: str, mask: torch.Tensor, pattern: SparsityPattern) -> list[int]:
    if pattern.group:
        return mask.reshape(-1, pattern.group).sum(1).tolist()
    if method == "wanda":
        return mask.sum(1).tolist()
    parts = mask.split(128, dim=1) if method == "sparsegpt" else (mask,)
    return [int(part.sum()) for part in parts]


@settings(max_examples=25)
@given(
    st.integers(1, 5),
    st.sampled_from([8, 24, 136, 264]),
    st.sampled_from(PATTERNS),
    st.sampled_from(sorted(METHODS)),
    st.integers(0, 999),
)
def test_counts_are_exact_also_with_equal_weights_and_inputs_that_never_come(
    rows: int, width: int, pattern: SparsityPattern, method: str, seed: int
) -> None:
    random = torch.Generator().manual_seed(seed)
    weight = torch.randint(-2, 3, (rows, width), generator=random).float()
    inputs = torch.randn(32, width, generator=random)
    inputs[:, torch.rand(width, generator=random) < 0.3] = 0
    result, mask = pruned(method, weight, inputs, pattern)
    shape = (rows, width)
    assert counted_zeros(method, mask, pattern) == expected_zeros(method, shape, pattern)
    assert bool((result[mask] == 0).all())
    if method != "sparsegpt":
        assert torch.equal(result[~mask], weight[~mask])


def test_wanda_on_a_case_worked_out_by_hand() -> None:
    # Norms of the inputs are 5, 1, 2 and 13: a small weight on a strong input stays.
    inputs = torch.tensor([[3.0, 1, 0, 5], [4.0, 0, 2, 12]])
    weight = torch.tensor([[1.0, -6, 2, 0.5], [-0.1, 0.4, -0.3, 0.1]])
    # Scores: 5, 6, 4, 6.5 and 0.5, 0.4, 0.6, 1.3; each row loses its two lowest.
    result, _ = pruned("wanda", weight, inputs, make_pattern(0.5, None))
    assert torch.equal(result, torch.tensor([[0.0, -6, 0, 0.5], [0, 0, -0.3, 0.1]]))
    by_size, _ = pruned("magnitude", weight, inputs, make_pattern(0.5, None))
    assert torch.equal(by_size, torch.tensor([[1.0, -6, 2, 0.5], [0, 0, 0, 0]]))


def test_sparsegpt_on_a_case_worked_out_by_hand() -> None:
    # Two inputs that are always equal: one weight can do the work of both. H = [[a, a], [a, a]]
    # with damping d on the diagonal, so the kept weight is 1 + a / (a + d).
    inputs = torch.full((4, 2), 3.0)
    result, mask = pruned("sparsegpt", torch.ones(1, 2), inputs, make_pattern(0.5, None))
    a = 2 * 4 * 9.0
    assert mask.tolist() == [[True, False]]
    assert result[0, 1].item() == pytest.approx(1 + a / (a + 0.01 * a), rel=1e-5)


@pytest.mark.parametrize("pattern", PATTERNS, ids=lambda pattern: pattern.name)
def test_sparsegpt_leaves_less_error_than_wanda_and_wanda_less_than_magnitude(
    pattern: SparsityPattern,
) -> None:
    random = np.random.default_rng(0)
    mixing = random.normal(size=(192, 192)) / 14 + np.eye(192)
    scales = np.exp(random.normal(size=192))
    inputs = torch.from_numpy((random.normal(size=(2000, 192)) @ mixing) * scales).float()
    weight = torch.from_numpy(random.normal(size=(64, 192))).float()
    errors = []
    for method in ("sparsegpt", "wanda", "magnitude"):
        result, _ = pruned(method, weight, inputs, pattern)
        errors.append(((result - weight) @ inputs.T).norm().item())
    assert errors[0] < errors[1] < errors[2]


def test_a_pattern_that_a_width_cannot_take_is_refused() -> None:
    with pytest.raises(KPruneError, match=r"layers\.0\.x has 42 inputs, which the groups of 4"):
        make_pattern(None, "2:4").check("layers.0.x", 42)
    with pytest.raises(KPruneError, match="drop --sparsity"):
        make_pattern(0.5, "2:4")


def test_a_hessian_is_the_same_however_the_text_is_cut() -> None:
    inputs = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
    whole, parts = Hessian(8, CPU), Hessian(8, CPU)
    whole.add(inputs)
    for part in inputs.split(7):
        parts.add(part)
    assert torch.allclose(whole.matrix, parts.matrix, rtol=1e-5)
    assert torch.allclose(whole.matrix, 2 * inputs.T @ inputs, rtol=1e-5)
