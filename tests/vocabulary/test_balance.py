"""One ranking for all sources: weights that let the last of them reach its bound earliest."""

import itertools
import json
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest
from support.tiny_tokenizers import SENTENCES, TINY

from vllm_kprune.arrays import Floats
from vllm_kprune.tokenizer.bpe import BpeTokenizer, parse_tokenizer
from vllm_kprune.tokenizer.prune import pruned_tokenizer
from vllm_kprune.tokenizer.steps import merge_steps
from vllm_kprune.vocabulary.balance import balanced_weights, places


def ranking(losses: Floats, weights: Floats) -> npt.NDArray[np.int64]:
    return np.argsort(-(weights @ losses), kind="stable")


def size_needed(losses: Floats, budgets: Floats, weights: Floats) -> int:
    return int(places(losses, budgets, ranking(losses, weights)).max())


def smallest(losses: Floats, budgets: Floats) -> int:
    """By trying every set of tokens."""
    count = losses.shape[1]
    for size in range(count + 1):
        for kept in itertools.combinations(range(count), size):
            left = np.delete(losses, kept, axis=1).sum(axis=1)
            if (left <= budgets + 1e-9).all():
                return size
    return count


@pytest.mark.parametrize("seed", range(8))
def test_balancing_is_never_worse_than_equal_weights_and_near_the_best(seed: int) -> None:
    chance = np.random.default_rng(seed)
    # A few frequent ids and many rare ones, in sources of very different kinds.
    losses = chance.pareto(1.0, (3, 10)) * chance.integers(0, 2, (3, 10))
    budgets = losses.sum(axis=1) * 0.2
    weights = balanced_weights(losses, budgets, lambda w: ranking(losses, w))
    needed = size_needed(losses, budgets, weights)
    assert needed <= size_needed(losses, budgets, np.ones(3))
    assert smallest(losses, budgets) <= needed <= smallest(losses, budgets) + 1


def test_a_small_source_is_served_without_giving_up_the_large_one() -> None:
    """With equal weights, the second source comes after all of the first."""
    losses = np.zeros((2, 110))
    losses[0, :100] = np.linspace(100, 10, 100)
    losses[1, 100:] = 1.0
    budgets = losses.sum(axis=1) * 0.1
    weights = balanced_weights(losses, budgets, lambda w: ranking(losses, w))
    assert weights[1] > weights[0]
    assert size_needed(losses, budgets, weights) < size_needed(losses, budgets, np.ones(2)) == 109


def test_without_sources_or_losses_nothing_is_weighed() -> None:
    nothing = np.zeros((0, 5))
    assert balanced_weights(nothing, np.zeros(0), lambda w: np.arange(5)).tolist() == []
    assert places(np.zeros((1, 3)), np.zeros(1), np.arange(3)).tolist() == [0]


@pytest.mark.parametrize("kind", sorted(TINY))
def test_steps_tell_how_many_tokens_a_text_needs_more(kind: str) -> None:
    """Counted with the pruned tokenizer itself, for vocabularies that keep whole characters."""
    tokenizer = TINY[kind]()
    parsed = parse_tokenizer(json.loads(tokenizer.to_str()))
    made = sorted({parsed.vocab[left + right] for left, right in parsed.merges})
    chance = np.random.default_rng(3)
    for text in SENTENCES[:3]:
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        counts = np.bincount(ids, minlength=max(parsed.tokens) + 1).astype(float)
        uses = merge_steps(parsed, np.flatnonzero(counts).tolist()).uses(counts)
        kept = _closed(parsed, sorted(chance.choice(made, len(made) // 2, replace=False).tolist()))
        lost = [i for i in made if i not in kept]
        pruned = pruned_tokenizer(parsed, sorted(set(parsed.tokens) - set(lost)))
        longer = len(pruned.encode(text, add_special_tokens=False).ids) - len(ids)
        assert uses[lost].sum() == pytest.approx(longer, rel=0.15)


def _closed(parsed: BpeTokenizer, ids: Sequence[int]) -> set[int]:
    """The ids whose ancestors are all among them or are characters."""
    known = {*ids, *(i for i, token in parsed.tokens.items() if len(token) == 1)}
    return {i for i in ids if known.issuperset(parsed.derivation_ids(i))}
