"""One ranking, cut anywhere: vocabularies are nested, and each sizing chooses a point on it."""

import json
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from support.tiny_tokenizers import SENTENCES, TINY
from tokenizers import Tokenizer

from vllm_kprune.checkpoint.plan import Plan, count_evidence
from vllm_kprune.errors import KPruneError
from vllm_kprune.profile import Profile, parse_profile
from vllm_kprune.tokenizer.bpe import parse_tokenizer
from vllm_kprune.tokenizer.prune import pruned_tokenizer
from vllm_kprune.vocabulary import sizing
from vllm_kprune.vocabulary.cost import encode_texts, expected_extra, shrink
from vllm_kprune.vocabulary.evidence import Source, count_source
from vllm_kprune.vocabulary.selection import NEVER, Ranking, Selection, rank_tokens
from vllm_kprune.vocabulary.sizing import cut_ranking

ENGLISH, KOREAN = SENTENCES[:3], SENTENCES[3:5]


def source_of(name: str, texts: Sequence[str]) -> Source:
    weighted = [(text, 1.0 + number) for number, text in enumerate(texts)]
    return Source(name, "digest", lambda: iter(weighted))


def ranking_of(tokenizer: Tokenizer, *evidence: Sequence[str], **profile: Any) -> Ranking:
    parsed = parse_tokenizer(json.loads(tokenizer.to_str()))
    sources = [source_of(f"source {n}", texts) for n, texts in enumerate(evidence)]
    rates = [count_source(tokenizer, s, max(parsed.tokens) + 1) for s in sources]
    wanted = parse_profile({"name": "test", "languages": ["en", "ko"], **profile})
    return rank_tokens(parsed, tokenizer, wanted, rates, frozenset())


def cut(ranking: Ranking, tokenizer: Tokenizer, **size: Any) -> Selection:
    values = {"name": "test", "languages": ["en", "ko"], **size}
    return cut_ranking(ranking, tokenizer, parse_profile(values))


def extra_tokens(tokenizer: Tokenizer, ranking: Ranking, kept: Sequence[int]) -> list[float]:
    """Counted plainly: every text encoded by both tokenizers."""
    pruned = pruned_tokenizer(ranking.parsed, kept)
    shares = []
    for rate in ranking.rates:
        texts = list(rate.source.texts())
        before, after = (
            sum(w * len(t.encode(text, add_special_tokens=False)) for text, w in texts)
            for t in (tokenizer, pruned)
        )
        shares.append(after / before - 1)
    return shares


@pytest.fixture(params=sorted(TINY))
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    """A small tokenizer of each kind."""
    return TINY[request.param]()


@pytest.fixture
def ranking(tokenizer: Tokenizer) -> Ranking:
    """Ranked for English and Korean."""
    return ranking_of(tokenizer, ENGLISH, KOREAN)


def test_every_size_gives_a_vocabulary_that_holds_all_smaller_ones(ranking: Ranking) -> None:
    assert ranking.most - ranking.least > 50
    kept = [set(ranking.of_size(n).kept_ids) for n in range(ranking.least, ranking.most + 1)]
    for number, (smaller, larger) in enumerate(pairwise(kept)):
        assert len(smaller) == ranking.least + number
        assert smaller < larger


def test_every_vocabulary_has_the_ancestors_of_its_tokens(ranking: Ranking) -> None:
    for size in range(ranking.least, ranking.most + 1, 7):
        kept = set(ranking.of_size(size).kept_ids)
        for token_id in kept - ranking.parsed.added_ids - ranking.parsed.byte_ids:
            assert ranking.parsed.derivation_ids(token_id) <= kept


def test_least_sizes_name_the_smallest_vocabulary_that_has_an_id(ranking: Ranking) -> None:
    for size in (ranking.least, (ranking.least + ranking.most) // 2, ranking.most):
        kept = np.flatnonzero(ranking.least_sizes <= size)
        assert tuple(kept) == ranking.of_size(size).kept_ids
    never = set(np.flatnonzero(ranking.least_sizes == NEVER))
    assert never and never.isdisjoint(ranking.of_size(ranking.most).kept_ids)


def test_the_first_ranked_tokens_are_the_vocabulary_of_their_size(ranking: Ranking) -> None:
    for count in range(0, len(ranking.ranked) + 1, 9):
        first = ranking.first(count)
        assert first.kept_ids == ranking.of_size(len(first.kept_ids)).kept_ids
        evident = {i for i, r in zip(first.kept_ids, first.reasons, strict=True) if r == "e"}
        assert evident == set(ranking.ranked[:count])


@pytest.mark.parametrize("size", [{"min_count": 2e4}, {"coverage": 0.7}, {"max_extra_tokens": 0.2}])
def test_each_sizing_chooses_a_point_of_the_ranking(
    ranking: Ranking, tokenizer: Tokenizer, size: dict[str, float]
) -> None:
    chosen = cut(ranking, tokenizer, **size).kept_ids
    assert ranking.least < len(chosen) < ranking.most
    assert chosen == ranking.of_size(len(chosen)).kept_ids


@pytest.mark.parametrize("bound", [0.0, 0.01, 0.1, 0.3, 1.0])
def test_the_point_meets_the_bound_and_the_next_smaller_one_does_not(
    ranking: Ranking, tokenizer: Tokenizer, bound: float
) -> None:
    chosen = cut(ranking, tokenizer, max_extra_tokens=bound).kept_ids
    assert max(extra_tokens(tokenizer, ranking, chosen)) <= bound
    smaller = int(max(n for n in ranking.sizes if n < len(chosen)))
    below = ranking.of_size(smaller).kept_ids
    assert max(extra_tokens(tokenizer, ranking, below)) > bound


def estimate_badly(monkeypatch: pytest.MonkeyPatch, slope: float) -> None:
    """Let every size cost as much less than the one before as `slope` says."""

    def wrong(parsed: Any, rates: Sequence[Any], least_sizes: Any, sizes: Sequence[int]) -> Any:
        return np.outer([slope] * len(rates), range(len(sizes), 0, -1))

    monkeypatch.setattr(sizing, "expected_extra", wrong)


@pytest.mark.parametrize("slope", [-1.0, 0.0, 1e-6, 1.0])
@pytest.mark.parametrize("bound", [0.0, 0.1, 1.0])
def test_a_wrong_estimate_costs_time_but_leads_to_the_same_point(
    ranking: Ranking,
    tokenizer: Tokenizer,
    bound: float,
    slope: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    right = cut(ranking, tokenizer, max_extra_tokens=bound)
    estimate_badly(monkeypatch, slope)
    assert cut(ranking, tokenizer, max_extra_tokens=bound) == right


@pytest.mark.parametrize("slope", [None, -1.0, 0.0, 1e-3, 1.0])
@pytest.mark.parametrize("tolerance", [0.02, 0.1])
def test_the_point_is_within_the_tolerance_of_the_smallest_that_would_do(
    ranking: Ranking,
    tokenizer: Tokenizer,
    tolerance: float,
    slope: float | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    smallest = len(cut(ranking, tokenizer, max_extra_tokens=0.1).kept_ids)
    monkeypatch.setattr(sizing, "_TOLERANCE", tolerance)
    if slope is not None:
        estimate_badly(monkeypatch, slope)
    chosen = cut(ranking, tokenizer, max_extra_tokens=0.1).kept_ids
    assert max(extra_tokens(tokenizer, ranking, chosen)) <= 0.1
    assert smallest <= len(chosen) <= smallest / (1 - tolerance)


def test_the_estimate_of_all_sizes_is_close_to_what_is_measured(
    ranking: Ranking, tokenizer: Tokenizer
) -> None:
    sizes = np.arange(ranking.least, ranking.most + 1)
    expected = expected_extra(ranking.parsed, ranking.rates, ranking.least_sizes, sizes)
    assert (np.diff(expected) <= 0).all()
    for place in range(0, len(sizes), 11):
        measured = extra_tokens(tokenizer, ranking, ranking.of_size(int(sizes[place])).kept_ids)
        assert expected[:, place] == pytest.approx(measured, rel=0.02, abs=0.01)
    assert expected[:, 0].max() > 2


def test_each_source_is_bound_by_itself(tokenizer: Tokenizer) -> None:
    """English alone would be cheap enough with a vocabulary that serves Korean only."""
    both = ranking_of(tokenizer, ENGLISH, KOREAN)
    korean = ranking_of(tokenizer, KOREAN)
    sizes = [len(cut(r, tokenizer, max_extra_tokens=0.1).kept_ids) for r in (both, korean)]
    assert sizes[0] > sizes[1]


def test_extra_tokens_measured_step_by_step_are_those_of_plain_counting(
    ranking: Ranking, tokenizer: Tokenizer
) -> None:
    """Texts that keep their tokens are not encoded again: that must not change any count."""
    least_sizes = ranking.least_sizes
    original = [encode_texts(tokenizer, rate.source, least_sizes) for rate in ranking.rates]
    texts = original
    for size in range(ranking.most, ranking.least - 1, -13):
        texts = shrink(ranking.parsed, texts, size, least_sizes)
        found = [now.extra(before) for now, before in zip(texts, original, strict=True)]
        kept = ranking.of_size(size).kept_ids
        assert found == pytest.approx(extra_tokens(tokenizer, ranking, kept), abs=1e-12)
    assert found[0] > 0.3


def test_a_bound_that_no_size_meets_names_the_source_and_what_it_costs(
    tokenizer: Tokenizer,
) -> None:
    ranking = ranking_of(tokenizer, ENGLISH, SENTENCES[5:7])
    with pytest.raises(
        KPruneError, match=r"0.01: source 1 needs \d+\.\d+% more tokens even with all"
    ):
        cut(ranking, tokenizer, max_extra_tokens=0.01)


def test_without_evidence_a_bound_keeps_what_must_be_kept(tokenizer: Tokenizer) -> None:
    ranking = ranking_of(tokenizer)
    assert len(cut(ranking, tokenizer, max_extra_tokens=0.01).kept_ids) == ranking.least


def test_a_text_without_tokens_has_no_cost_to_measure(
    ranking: Ranking, tokenizer: Tokenizer
) -> None:
    with pytest.raises(KPruneError, match="empty contains no text to measure"):
        encode_texts(tokenizer, source_of("empty", [""]), ranking.least_sizes)


@pytest.mark.slow
def test_vocabularies_of_gemma_are_nested_and_dearer_the_smaller(enko_plan: Plan) -> None:
    profile = Profile(name="th", languages=("th", "ko"), code=False)
    tokenizer, _, referenced = count_evidence(enko_plan.base, [], lambda step, share: None)
    rates = [rate for rate in enko_plan.rates if rate.source.name == "word list ko"]
    ranking = rank_tokens(enko_plan.base.tokenizer, tokenizer, profile, rates, referenced)
    texts = original = [
        encode_texts(tokenizer, source_of("text", SENTENCES[:5]), ranking.least_sizes)
    ]
    costs = []
    for size in (ranking.most, ranking.least + 5000, ranking.least + 500, ranking.least):
        texts = shrink(ranking.parsed, texts, size, ranking.least_sizes)
        costs.append(texts[0].extra(original[0]))
    assert costs == sorted(costs)
    assert costs[0] < 0.01 < 0.5 < costs[-1]
