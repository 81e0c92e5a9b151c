"""Products in int8: how far they are from exact, and what rounding must not lose."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_kprune.errors import KPruneError
from vllm_kprune.prompt import products
from vllm_kprune.prompt.products import ExactProducts, Int8Products, Products, check_int8

DIM, KEYS = 32, 200


def drawn(seed: int, *, outlier: float = 0.0, shift: float = 0.0) -> tuple[torch.Tensor, ...]:
    """Queries [2, 40, DIM] and keys [KEYS, DIM]; one dimension of the keys is an outlier, and
    all keys have a common part."""
    generator = torch.Generator().manual_seed(seed)
    queries = torch.randn(2, 40, DIM, generator=generator)
    keys = torch.randn(KEYS, DIM, generator=generator) + shift
    keys[:, 3] *= 1 + outlier
    queries[..., 3] /= 1 + outlier
    return queries, keys


def of_head(kind: Products, queries: torch.Tensor, keys: torch.Tensor, head: int) -> torch.Tensor:
    kind.set_keys(keys, queries)
    kind.set_queries(queries, 10, 150)
    out = torch.full((queries.shape[1], 140), torch.nan)
    kind.write(head, out)
    return out


def without_query_term(products: torch.Tensor) -> torch.Tensor:
    return products - products.mean(dim=1, keepdim=True)


@settings(max_examples=40)
@given(seed=st.integers(0, 1 << 20), head=st.integers(0, 1), centred=st.booleans())
def test_int8_is_close_up_to_a_term_of_the_query(seed: int, head: int, centred: bool) -> None:
    queries, keys = drawn(seed)
    expected = of_head(ExactProducts(), queries, keys, head)
    torch.testing.assert_close(expected, queries[head] @ keys[10:150].T)
    got = of_head(Int8Products(centred=centred), queries, keys, head)
    if centred:
        got, expected = without_query_term(got), without_query_term(expected)
    assert (got - expected).abs().max() < 0.02 * DIM  # a product's standard deviation is 5.7


def error(seed: int, **kind: float) -> float:
    queries, keys = drawn(seed, **kind)
    exact, rounded = (
        without_query_term(of_head(way, queries, keys, 0))
        for way in (ExactProducts(), Int8Products(centred=True))
    )
    return float((rounded - exact).square().mean().sqrt())


def test_neither_an_outlying_dimension_nor_a_common_part_costs_precision() -> None:
    plain = error(1)
    assert 0 < plain < 0.1
    assert error(1, outlier=200.0) < 1.5 * plain
    assert error(1, shift=30.0) < 1.5 * plain


def test_a_processor_whose_int8_products_overflow_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    exact = torch._int_mm

    def saturated(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return exact(a, b).clamp(max=32767)

    check_int8.cache_clear()
    try:
        monkeypatch.setattr(products.torch, "_int_mm", saturated)
        with pytest.raises(KPruneError, match="int8 products overflow; rank with precision float"):
            check_int8()
    finally:
        check_int8.cache_clear()
