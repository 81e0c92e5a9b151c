"""What a vocabulary costs a text, what the text misses most, and the option that keeps it."""

import json
from collections.abc import Sequence

import pytest
from support.tiny_tokenizers import SENTENCES, TINY
from tokenizers import Tokenizer

from vllm_kprune.profile import GENRES, Profile
from vllm_kprune.tokenizer.bpe import BpeTokenizer, parse_tokenizer
from vllm_kprune.tokenizer.prune import pruned_tokenizer
from vllm_kprune.vocabulary.evidence import Source, count_source
from vllm_kprune.vocabulary.missing import CostMeter, least_extra
from vllm_kprune.vocabulary.samples import genre_samples
from vllm_kprune.vocabulary.sizing import select_tokens

TEXTS = SENTENCES[:2]


@pytest.fixture(params=sorted(TINY))
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    """A small tokenizer of each kind."""
    return TINY[request.param]()


def kept_by(tokenizer: Tokenizer, keep: Sequence[str] = ()) -> tuple[BpeTokenizer, list[int]]:
    """What a Korean profile without evidence keeps."""
    parsed = parse_tokenizer(json.loads(tokenizer.to_str()))
    profile = Profile(name="x", languages=("ko",), genres=(), keep=tuple(keep))
    selection = select_tokens(parsed, tokenizer, profile, [], frozenset())
    assert ("k" in selection.reasons) == bool(keep)
    return parsed, list(selection.kept_ids)


def test_the_cost_is_what_both_tokenizers_say_and_the_dearest_tokens_come_first(
    tokenizer: Tokenizer,
) -> None:
    parsed, kept = kept_by(tokenizer)
    pruned = pruned_tokenizer(parsed, kept)
    cost = CostMeter(parsed, tokenizer, pruned, kept).measure((text, 1.0) for text in TEXTS)
    lengths = [
        sum(len(one.encode(text, add_special_tokens=False)) for text in TEXTS)
        for one in (tokenizer, pruned)
    ]
    assert [cost.original, cost.pruned] == lengths
    assert cost.extra == lengths[1] / lengths[0] - 1 > 0.5
    dearest = [one.extra_tokens for one in cost.dearest]
    assert len(dearest) == 10 and dearest == sorted(dearest, reverse=True)
    assert all(" ".join(TEXTS).count(one.text) >= one.occurrences for one in cost.dearest)


def test_what_a_text_misses_is_kept_by_name_and_then_costs_nothing(tokenizer: Tokenizer) -> None:
    parsed, kept = kept_by(tokenizer, TEXTS)
    meter = CostMeter(parsed, tokenizer, pruned_tokenizer(parsed, kept), kept)
    cost = meter.measure((text, 1.0) for text in TEXTS)
    assert (cost.extra, cost.dearest) == (0.0, ())
    for token_id in set(kept) - parsed.added_ids - parsed.byte_ids:
        assert parsed.derivation_ids(token_id) <= set(kept)


def test_the_estimate_without_encoding_is_close(tokenizer: Tokenizer) -> None:
    parsed, kept = kept_by(tokenizer)
    source = Source("x", "", lambda: ((text, 1.0) for text in TEXTS))
    rates = count_source(tokenizer, source, max(parsed.tokens) + 1)
    meter = CostMeter(parsed, tokenizer, pruned_tokenizer(parsed, kept), kept)
    measured = meter.measure(source.texts()).extra
    assert least_extra(parsed, rates, kept) == pytest.approx(measured, rel=0.05)


def test_samples_are_measured_in_the_letters_of_the_profile() -> None:
    both = dict(genre_samples(Profile(name="x", languages=("en", "ko"))))
    english = dict(genre_samples(Profile(name="x", languages=("en",))))
    assert set(both) > {"chat", "law", "medicine", "finance", "mathematics", "urls", "pdf", "sql"}
    assert not any("가" <= letter <= "힣" for text in english.values() for letter in text)
    assert "hanja" not in both and "korean" not in english
    hanja = dict(genre_samples(Profile(name="x", languages=("ko",), hanja="ksx1001")))
    assert "漢" in hanja["hanja"] or "法" in hanja["hanja"]
    assert set(GENRES) - {"code", "web", "documents"} <= set(both)
