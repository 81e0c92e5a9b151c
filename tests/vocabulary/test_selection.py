"""What a profile keeps and why, on small tokenizers and on Gemma-3's."""

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from support.tiny_tokenizers import TINY, byte_fallback_tokenizer, byte_level_tokenizer
from tokenizers import Tokenizer

from vllm_kprune.checkpoint.plan import Plan
from vllm_kprune.errors import KPruneError
from vllm_kprune.profile import Profile, parse_profile
from vllm_kprune.tokenizer.bpe import BpeTokenizer, parse_tokenizer
from vllm_kprune.tokenizer.encoder import load_encoder
from vllm_kprune.vocabulary.evidence import Source, TokenRates, count_source
from vllm_kprune.vocabulary.selection import Selection, select_everything
from vllm_kprune.vocabulary.sizing import select_tokens

ENGLISH = ("the cat sat on the mat", "the other weather", "the weather in items")
CODE = ("for item in items:\n    print(item)\n",)


def parsed_of(tokenizer: Tokenizer) -> BpeTokenizer:
    return parse_tokenizer(json.loads(tokenizer.to_str()))


def rates_of(tokenizer: Tokenizer, name: str, texts: Sequence[str]) -> TokenRates:
    source = Source(name, "digest", lambda: ((text, 1.0) for text in texts))
    return count_source(tokenizer, source, max(parsed_of(tokenizer).tokens) + 1)


def select(
    tokenizer: Tokenizer,
    *,
    referenced: frozenset[str] = frozenset(),
    evidence: Sequence[Sequence[str]] = (ENGLISH, CODE),
    **profile: Any,
) -> Selection:
    rates = [rates_of(tokenizer, str(n), texts) for n, texts in enumerate(evidence)]
    values = {"name": "test", "languages": ["en", "ko"], **profile}
    return select_tokens(parsed_of(tokenizer), tokenizer, parse_profile(values), rates, referenced)


def texts_of(tokenizer: Tokenizer, selection: Selection, letters: str = "sbcem") -> set[str]:
    parsed = parsed_of(tokenizer)
    return {
        parsed.token_bytes(i).decode(errors="replace")
        for i, letter in zip(selection.kept_ids, selection.reasons, strict=True)
        if letter in letters
    }


@pytest.fixture(params=sorted(TINY))
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    """A small tokenizer of each kind."""
    return TINY[request.param]()


def test_kept_ids_increase_and_each_has_a_reason(tokenizer: Tokenizer) -> None:
    selection = select(tokenizer)
    assert list(selection.kept_ids) == sorted(set(selection.kept_ids))
    assert len(selection.reasons) == len(selection.kept_ids)
    counts = selection.by_reason()
    assert sum(counts.values()) == len(selection.kept_ids)
    assert (counts["special"], counts["byte"]) == (4, 256)
    assert min(counts["script"], counts["evidence"]) > 10


def test_tokens_are_kept_for_the_reasons_of_the_design(tokenizer: Tokenizer) -> None:
    selection = select(tokenizer)
    assert {" 오늘", "1", " 😀"} & texts_of(tokenizer, selection, "cm")
    assert {" the", " cat"} <= texts_of(tokenizer, selection, "e")
    kept = texts_of(tokenizer, selection)
    foreign = {"中", "国", "학교漢", "これ", "При", "ภาษา"}
    assert not kept & foreign
    assert not any("\u4e00" <= c <= "\u9fff" or "а" <= c <= "я" for text in kept for c in text)


def test_letters_of_ascii_stay_letters_however_rare(tokenizer: Tokenizer) -> None:
    """As a byte, one takes no token more, but the model has hardly seen it so."""
    vocab = parsed_of(tokenizer).vocab
    ascii_ids = {vocab[one] for one in map(chr, range(128)) if one in vocab}
    selection = select(tokenizer, evidence=(("고양이",),), languages=["ko"])
    assert ascii_ids and ascii_ids <= set(selection.kept_ids)


def test_the_ancestors_of_every_kept_token_are_kept(tokenizer: Tokenizer) -> None:
    parsed = parsed_of(tokenizer)
    selection = select(tokenizer, referenced=frozenset({"the"}))
    kept = set(selection.kept_ids)
    for token_id in kept - parsed.added_ids - parsed.byte_ids:
        assert parsed.derivation_ids(token_id) <= kept, parsed.tokens[token_id]


def test_an_ordinary_token_that_a_config_names_is_kept_with_its_ancestors(
    tokenizer: Tokenizer,
) -> None:
    """A suppressed token, say: texts reach it by merges, so law 1 needs its ancestors."""
    parsed = parsed_of(tokenizer)
    long = max((t for t in parsed.vocab if t.isascii() and t.isalpha()), key=len)
    selection = select(tokenizer, referenced=frozenset({long}), evidence=[["1"]])
    kept = dict(zip(selection.kept_ids, selection.reasons, strict=True))
    assert kept[parsed.vocab[long]] == "s"
    assert parsed.derivation_ids(parsed.vocab[long]) <= kept.keys()
    assert len(parsed.derivation_ids(parsed.vocab[long])) > 2


@pytest.mark.parametrize(
    ("drop_unused", "referenced", "kept"),
    [
        (True, frozenset(), set()),
        (True, frozenset({"<unused1>"}), {"<unused1>"}),
        (False, frozenset(), {f"<unused{n}>" for n in range(5)}),
    ],
)
def test_reserved_tokens_go_unless_something_refers_to_them(
    tokenizer: Tokenizer, drop_unused: bool, referenced: frozenset[str], kept: set[str]
) -> None:
    selection = select(tokenizer, drop_unused=drop_unused, referenced=referenced)
    texts = texts_of(tokenizer, selection)
    assert {text for text in texts if text.startswith("<unused")} == kept
    assert {"<bos>", "<eos>", "<pad>", "<unk>"} <= texts


@pytest.mark.parametrize(
    ("hanja", "standard", "simplified"),
    [("none", False, False), ("ksx1001", True, False), ("all", True, True)],
)
def test_hanja_are_kept_as_single_characters_when_asked_for(
    hanja: str, standard: bool, simplified: bool
) -> None:
    tokenizer = byte_fallback_tokenizer()
    kept = texts_of(tokenizer, select(tokenizer, hanja=hanja))
    assert ("漢" in kept, "们" in kept) == (standard, simplified)
    assert not any(len(text) > 1 and "國" in text for text in kept)


@pytest.mark.parametrize("extra", [0, 1, 5, 20])
def test_a_target_size_is_met_exactly(tokenizer: Tokenizer, extra: int) -> None:
    least = _least(tokenizer)
    selection = select(tokenizer, target_size=least + extra)
    assert len(selection.kept_ids) == least + extra


def _least(tokenizer: Tokenizer) -> int:
    with pytest.raises(
        KPruneError, match=r"target size 1: profile test must keep at least \d+"
    ) as e:
        select(tokenizer, target_size=1)
    return int(str(e.value).split("at least ")[1].split()[0])


def test_a_target_size_below_the_minimum_names_the_minimum(tokenizer: Tokenizer) -> None:
    least = _least(tokenizer)
    with pytest.raises(KPruneError, match=f"at least {least} tokens"):
        select(tokenizer, target_size=least - 1)


def test_a_target_size_above_the_vocabulary_is_refused(tokenizer: Tokenizer) -> None:
    size = tokenizer.get_vocab_size()
    with pytest.raises(KPruneError, match=f"{size + 1} is above the vocabulary of {size} tokens"):
        select(tokenizer, target_size=size + 1)


def test_a_target_size_above_what_the_languages_use_names_the_most(tokenizer: Tokenizer) -> None:
    size = tokenizer.get_vocab_size()
    with pytest.raises(KPruneError, match="can use at most") as caught:
        select(tokenizer, target_size=size)
    most = int(str(caught.value).split("at most ")[1].split()[0])
    assert len(select(tokenizer, target_size=most).kept_ids) == most


def test_a_higher_threshold_never_keeps_more(tokenizer: Tokenizer) -> None:
    sizes = [
        len(select(tokenizer, min_count=threshold).kept_ids)
        for threshold in (0, 1e4, 5e4, 1e5, 1e6, 1e9)
    ]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] > sizes[-1] == _least(tokenizer)
    assert len(select(tokenizer).kept_ids) == sizes[0]


@pytest.mark.parametrize("coverage", [0.3, 0.6, 0.9, 1.0])
def test_coverage_is_reached_for_every_source_and_not_overshot(
    tokenizer: Tokenizer, coverage: float
) -> None:
    selection = select(tokenizer, coverage=coverage)
    assert all(share >= coverage - 1e-5 for share in selection.coverage.values())
    everything = select(tokenizer, coverage=1.0)
    assert set(selection.kept_ids) <= set(everything.kept_ids)
    if coverage == 0.3:
        assert len(selection.kept_ids) < len(everything.kept_ids)


@pytest.mark.parametrize("size", [{}, {"coverage": 0.9}, {"min_count": 1.0}])
def test_without_any_evidence_only_what_must_be_kept_is_kept(
    tokenizer: Tokenizer, size: dict[str, float]
) -> None:
    selection = select(tokenizer, evidence=[], **size)
    assert len(selection.kept_ids) == _least(tokenizer)
    assert selection.coverage == {}


def test_evidence_of_foreign_text_alone_covers_nothing() -> None:
    tokenizer = byte_fallback_tokenizer()
    selection = select(tokenizer, evidence=[["中国"]])
    assert selection.coverage == {"0": 0.0}
    assert "中" not in texts_of(tokenizer, selection)


def test_a_token_of_the_users_corpus_is_kept_however_rare_elsewhere(tokenizer: Tokenizer) -> None:
    before = texts_of(tokenizer, select(tokenizer, evidence=[["1"]]))
    after = texts_of(tokenizer, select(tokenizer, evidence=[["1"], ["the weather"]]))
    assert " weather" not in before
    assert " weather" in after


def test_tokens_that_no_text_produces_are_not_kept() -> None:
    data = json.loads(byte_fallback_tokenizer().to_str())
    size = max(data["model"]["vocab"].values()) + 1
    data["model"]["vocab"]["오늘오늘오늘"] = size  # and no merge that makes it
    tokenizer = Tokenizer.from_str(json.dumps(data))
    selection = select(tokenizer)
    assert size not in selection.kept_ids


def test_a_profile_without_languages_keeps_every_token(tokenizer: Tokenizer) -> None:
    selection = select(tokenizer, languages=[], evidence=[])
    assert selection.kept_ids == tuple(sorted(parsed_of(tokenizer).tokens))
    counts = select_everything(parsed_of(tokenizer)).by_reason()
    assert (counts["special"], counts["byte"], counts["evidence"]) == (9, 256, 0)


def test_selecting_twice_gives_the_same() -> None:
    tokenizer = byte_level_tokenizer()
    assert select(tokenizer, coverage=0.8) == select(tokenizer, coverage=0.8)


@pytest.mark.slow
def test_enko_keeps_korean_common_and_frequent_latin_tokens_of_gemma(enko_plan: Plan) -> None:
    parsed, kept = enko_plan.base.tokenizer, set(enko_plan.selection.kept_ids)
    for token in ("한", "▁대한민국", "▁the", "▁return", "·", "…", "€", "😀", "1", "\n", "、"):
        assert parsed.vocab[token] in kept, token
    for token in ("中", "国", "の", "カ", "的", "и", "▁на", "ไ", "ا"):
        assert parsed.vocab[token] not in kept, token
    assert len(kept) <= 0.45 * 262_144


def test_enko_drops_the_reserved_tokens_of_gemma(enko_plan: Plan) -> None:
    parsed, kept = enko_plan.base.tokenizer, set(enko_plan.selection.kept_ids)
    reserved = [token.id for token in parsed.added if token.content.startswith("<unused")]
    assert len(reserved) > 6000
    assert not kept.intersection(reserved)
    assert parsed.vocab["<start_of_turn>"] in kept


def test_ancestors_of_every_token_that_enko_keeps_of_gemma_are_kept(enko_plan: Plan) -> None:
    parsed, kept = enko_plan.base.tokenizer, set(enko_plan.selection.kept_ids)
    sample = sorted(kept - parsed.added_ids - parsed.byte_ids)[::7]
    open_ones = [i for i in sample if parsed.derivation_ids(i) - kept]
    assert open_ones == []


@pytest.mark.slow
def test_a_size_for_gemma_is_met_exactly(enko_plan: Plan) -> None:
    tokenizer = load_encoder(enko_plan.base.folder)
    profile = Profile(name="th", languages=("th",), target_size=20_000)
    rates = [replace(rate) for rate in enko_plan.rates]
    selection = select_tokens(enko_plan.base.tokenizer, tokenizer, profile, rates, frozenset())
    assert len(selection.kept_ids) == 20_000
