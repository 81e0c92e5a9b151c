"""Each row of a batch gets the logits of its own profile, whoever else is in the batch."""

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_kprune.checkpoint.head import HeadRows, order_rows
from vllm_kprune.serving.head.kept import KeptHead
from vllm_kprune.serving.head.shards import deal
from vllm_kprune.serving.head.state import asking, take_profiles

HIDDEN, PADDED_TO = 4, 8


def size_of(count: int, ranks: int) -> int:
    """The length of a rank's range: vLLM rounds up, and kprune sees to it that some is padding."""
    unit = PADDED_TO * ranks
    return (count // unit + 1) * unit // ranks


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
@pytest.mark.parametrize("count", [1, 7, 8, 16, 17, 63, 64, 65])
def test_every_row_has_a_place_and_every_rank_an_equal_part_of_each_beginning(
    count: int, ranks: int
) -> None:
    size = size_of(count, ranks)
    shards = deal(count, ranks, size)
    places = shards.rank * size + shards.place
    # What vLLM stores: rows without gaps, from the first range to the last.
    assert sorted(places) == list(range(count))
    assert (places[np.argsort(places)] == np.arange(count)).all()
    full = [rank for rank in range(ranks) if (rank + 1) * size <= count]
    for end in range(1, count + 1):
        parts = np.bincount(shards.rank[:end], minlength=ranks)
        assert parts.max() <= shards.width(end)
        assert end == count or shards.width(end) <= parts.max() + 1
        assert len(full) < 2 or np.ptp(parts[full]) <= 1
        columns = shards.columns(end)
        assert len(set(columns)) == end
        assert shards.unused(end) < ranks * shards.width(end)
        assert shards.unused(end) not in columns


class PlainProduct:
    """Stands in for vLLM's method of a head that is not quantised."""

    def process_weights_after_loading(self, layer: Any) -> None:
        """Nothing to be done."""


def head_of(
    rows: HeadRows, weight: torch.Tensor, ranks: int, whole: bool
) -> tuple[KeptHead, Callable[..., torch.Tensor]]:
    """A head of the first rank, and the `forward` that gathers the logits of all."""
    vocabulary = len(weight)
    count = max(end for end in rows.ends if end < vocabulary) if whole else len(rows.ids)
    shards = deal(count, ranks, size_of(count, ranks))
    stored = torch.full((ranks * shards.size, HIDDEN), torch.nan)  # padding is never to be seen
    stored[:count] = weight[torch.from_numpy(rows.ids[shards.order]).long()]
    parts = stored.split(shards.size)
    layers = [
        SimpleNamespace(weight=part, bias=None, quant_method=PlainProduct(), tp_size=ranks)
        for part in parts
    ]
    embedding = SimpleNamespace(weight=weight)

    def forward(processor: Any, layer: Any, hidden: torch.Tensor, bias: Any) -> torch.Tensor:
        used = [weight] if layer is embedding else [p[: len(layer.weight)] for p in parts]
        logits = torch.cat([hidden @ part.T for part in used], dim=1)
        return logits[:, : processor.org_vocab_size]

    head = KeptHead(layers[0], rows, shards, vocabulary, embedding if whole else None)
    return head, forward


@st.composite
def heads(draw: st.DrawFn) -> tuple[HeadRows, int, int, list[int]]:
    vocabulary = draw(st.integers(3, 40))
    ids = st.lists(st.integers(0, vocabulary - 1), min_size=1, unique=True).map(sorted)
    kept = draw(st.lists(ids, min_size=1, max_size=4))
    if draw(st.booleans()):
        kept.append(list(range(vocabulary)))
    names = tuple(f"profile{n}" for n in range(len(kept)))
    wanted = draw(st.lists(st.integers(0, len(kept) - 1), max_size=6))
    return order_rows(names, kept), vocabulary, draw(st.integers(1, 3)), wanted


@settings(max_examples=150, deadline=None)
@given(heads())
@pytest.mark.slow
def test_a_row_has_the_logits_of_its_profile_and_minus_infinity_elsewhere(
    case: tuple[HeadRows, int, int, list[int]],
) -> None:
    rows, vocabulary, ranks, wanted = case
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(vocabulary, HIDDEN, generator=generator)
    hidden = torch.randn(len(wanted), HIDDEN, generator=generator)
    sizes = [end for end in rows.ends if end < vocabulary]
    # A tied head has no copy for a profile of all tokens.
    for whole in {False, bool(sizes) and max(rows.ends) == vocabulary}:
        head, forward = head_of(rows, weight, ranks, whole)
        processor = SimpleNamespace(org_vocab_size=vocabulary)
        with asking(lambda: wanted):
            found = head.logits(forward, processor, hidden)
        expected = torch.full((len(wanted), vocabulary), -torch.inf)
        for row, profile in enumerate(wanted):
            kept = torch.from_numpy(rows.kept(profile))
            expected[row, kept] = (hidden @ weight.T)[row, kept]
        assert found is not None and torch.allclose(found, expected, atol=1e-6)
        # A drafter, or the log-probabilities of a prompt: nobody says whose they are.
        every = torch.full((len(wanted), vocabulary), -torch.inf)
        union = torch.from_numpy(rows.ids).long()
        every[:, union] = (hidden @ weight.T)[:, union]
        found = head.logits(forward, processor, hidden)
        assert found is not None and torch.allclose(found, every, atol=1e-6)


def test_no_more_rows_are_computed_than_the_largest_profile_of_a_batch_needs() -> None:
    rows = order_rows(("small", "large"), [[3, 4], [1, 2, 3, 4, 5, 6]])
    weight = torch.randn(20, HIDDEN, generator=torch.Generator().manual_seed(0))
    head, forward = head_of(rows, weight, ranks=1, whole=False)
    seen: list[int] = []

    def watched(processor: Any, layer: Any, *rest: Any) -> torch.Tensor:
        seen.append(len(layer.weight))
        return forward(processor, layer, *rest)

    processor = SimpleNamespace(org_vocab_size=20)
    profiles: Sequence[list[int]] = ([0, 0], [0, 1], [1, 1])
    for wanted in profiles:
        with asking(lambda wanted=wanted: wanted):
            head.logits(watched, processor, torch.zeros(2, HIDDEN))
    assert seen == [2 + 1, 8, 8]  # the largest with all padding of the layer


def test_only_the_first_logits_of_a_step_are_those_of_its_requests() -> None:
    with asking(lambda: [1, 0]):
        assert take_profiles(2) == [1, 0]
        assert take_profiles(2) is None  # prompt log-probabilities, or a drafter
    with asking(lambda: [1, 0]), pytest.raises(RuntimeError, match="3 rows of logits for 2"):
        take_profiles(3)
    assert take_profiles(2) is None


def test_a_drafter_that_shares_the_head_gets_token_ids() -> None:
    rows = order_rows(("one",), [[2, 7, 9]])
    head, _ = head_of(rows, torch.zeros(12, HIDDEN), ranks=1, whole=False)
    hidden = torch.zeros(2, HIDDEN)
    assert head.top(lambda *_: torch.tensor([2, 0]), None, hidden).tolist() == [9, 2]
    values = torch.tensor([[0.5, 0.25]])
    ids, found = head.top(lambda *_: (torch.tensor([[1, 0]]), values), None, hidden, 2)
    assert ids.tolist() == [[7, 2]] and found is values
