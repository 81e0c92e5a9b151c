"""The laws of pruning a text, on real tokenizers and any Unicode."""

import random
from collections.abc import Callable
from fractions import Fraction
from math import floor
from pathlib import Path

import numpy as np
import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st
from support.meaning import fused, headless
from support.prompt_cases import UNICODE, GivenScores, pruner_of, random_text
from support.published import EACH
from support.tiny_tokenizers import byte_fallback_tokenizer, byte_level_tokenizer
from tokenizers import Tokenizer

from vllm_kprune.errors import KPruneError
from vllm_kprune.prompt.budget import PruneOptions
from vllm_kprune.prompt.pieces import cut_pieces
from vllm_kprune.prompt.rarity import Rarity
from vllm_kprune.prompt.result import PrunedSegment
from vllm_kprune.prompt.scorers import RandomScores, Scorer
from vllm_kprune.prompt.text_pruner import TextPruner
from vllm_kprune.prompt.tokens import Cancelled, control_tokens

OPTIONS = st.builds(
    PruneOptions,
    keep=st.sampled_from([0.05, 0.3, 0.5, 0.7, 0.9, 1.0]),
    target_tokens=st.none() | st.integers(1, 40),
    unit=st.sampled_from(["token", "word"]),
    prune_layout=st.booleans(),
    force_tokens=st.sampled_from([(), ("\n",), ("의", "a")]),
    force_digits=st.booleans(),
    force_first=st.integers(0, 3),
    force_last=st.integers(0, 3),
    min_tokens=st.sampled_from([0, 10]),
)


@pytest.fixture(scope="module", params=EACH)
def pruner(
    request: pytest.FixtureRequest, published_tokenizer: Callable[[str], Path]
) -> TextPruner:
    return pruner_of(Tokenizer.from_file(str(published_tokenizer(request.param))))


@pytest.fixture(scope="module")
def gemma(published_tokenizer: Callable[[str], Path]) -> Tokenizer:
    return Tokenizer.from_file(str(published_tokenizer("gemma3")))


def forced_tokens(pruned: PrunedSegment) -> int:
    return int(pruned.pieces.sizes[pruned.piece_forced].sum())


@given(text=UNICODE, options=OPTIONS)
@settings(max_examples=80)
@pytest.mark.slow
def test_whole_characters_of_the_text_are_kept_in_their_order(
    pruner: TextPruner, text: str, options: PruneOptions
) -> None:
    check_pieces(text, pruner.prune(text, options))


@pytest.mark.slow
def test_random_strings_are_cut_at_characters(pruner: TextPruner) -> None:
    rng = random.Random(5)
    options = [PruneOptions(keep=0.6), PruneOptions(keep=0.4, unit="word")]
    for number in range(2500):
        text = random_text(rng)
        check_pieces(text, pruner.prune(text, options[number % 2]))


def check_pieces(text: str, pruned: PrunedSegment) -> None:
    pieces = pruned.pieces
    bounds = list(zip(pieces.starts.tolist(), pieces.ends.tolist(), strict=True))
    assert "".join(text[start:end] for start, end in bounds) == text
    kept = [text[start:end] for (start, end), k in zip(bounds, pruned.piece_kept, strict=True) if k]
    left = "".join(kept)
    # Only a blank is ever put in.
    assert pruned.text.replace(" ", "") == left.replace(" ", "")
    assert pruned.text.count(" ") >= left.count(" ")
    assert not list(fused(pruned))
    characters = {match.start() for match in regex.finditer(r"\X", text)} | {len(text)}
    assert {start for start, _ in bounds} | {end for _, end in bounds} <= characters


@given(text=UNICODE, options=OPTIONS)
@settings(max_examples=80)
def test_no_more_is_kept_than_asked_for_or_forced(
    pruner: TextPruner, text: str, options: PruneOptions
) -> None:
    pruned = pruner.prune(text, options)
    assert pruned.tokens_after == len(pruner.tokenize(pruned.text).ids)
    if pruned.piece_scores is None:
        assert pruned.text == text
        return
    assert pruned.text or not text
    words = pruned.piece_kept & ~pruned.pieces.are(" \n|") & ~pruned.piece_forced
    assert not pruned.exceeds or words.sum() <= 1 or pruned.text == text
    if options.target_tokens is not None:
        assert pruned.budget == min(options.target_tokens, pruned.tokens_before)
    else:
        assert pruned.budget == max(1, floor(Fraction(str(options.keep)) * pruned.tokens_before))


@given(text=UNICODE, options=OPTIONS)
@settings(max_examples=60)
def test_what_is_forced_stays(pruner: TextPruner, text: str, options: PruneOptions) -> None:
    pruned = pruner.prune(text, options)
    assert (pruned.piece_kept | ~pruned.piece_forced).all()
    if options.force_digits:
        assert [c for c in pruned.text if c.isdigit()] == [c for c in text if c.isdigit()]
    for wanted in options.force_tokens:
        assert pruned.text.count(wanted) >= text.count(wanted)
    count = len(pruned.tokens.ids)
    assert pruned.kept[: options.force_first].all()
    assert pruned.kept[max(count - options.force_last, 0) :].all()


@given(text=UNICODE, options=OPTIONS)
@settings(max_examples=25)
def test_the_same_text_is_pruned_the_same(
    pruner: TextPruner, text: str, options: PruneOptions
) -> None:
    assert pruner.prune(text, options).text == pruner.prune(text, options).text


def test_the_share_is_a_bound_and_nearly_reached(gemma: Tokenizer) -> None:
    """Found in review: 57 of 100 tokens at 0.56, and more where words were fused."""
    words = ("the", "cat", "of", "Busan", "sat", "14", "mats", "in", "May", "not", "3.4", "million")
    rng = random.Random(3)
    pruner = pruner_of(gemma)
    for count in (150, 151, 260, 700):
        text = " ".join(rng.choices(words, k=count))
        for share in (0.07, 0.29, 0.56, 0.57, 0.7, 0.9):
            for options in (PruneOptions(keep=share), PruneOptions(keep=share, unit="token")):
                pruned = pruner.prune(text, options)
                most = Fraction(str(share)) * pruned.tokens_before
                least = (Fraction(str(share)) - Fraction(2, 100)) * pruned.tokens_before
                assert least <= pruned.tokens_after <= most


def test_what_is_left_is_counted_a_few_times_at_most(gemma: Tokenizer) -> None:
    counted: list[int] = []

    def count(text: str) -> int:
        counted.append(len(text))
        return len(text)

    text = "The Rhine rises in the Swiss Alps, and 3.4 million people live there. " * 40
    pruned = pruner_of(gemma).prune(text, PruneOptions(target_tokens=1500), count=count)
    assert 1440 <= pruned.tokens_after <= 1500
    assert len(counted) <= 4


@pytest.mark.slow
def test_the_beginning_of_a_word_outlives_its_end(gemma: Tokenizer) -> None:
    text = (
        "이학봉은 고안된 계획을 국회의원들에게 설명했다. Internationalisation misunderstood. " * 3
    )
    for seed in range(30):
        pruner = pruner_of(gemma, RandomScores(seed))
        for unit in ("token", "word"):
            pruned = pruner.prune(text, PruneOptions(keep=0.5, unit=unit))
            assert not list(headless(pruned))


@pytest.mark.slow
def test_korean_is_cut_at_eojeol_by_words(gemma: Tokenizer) -> None:
    pruner = pruner_of(gemma)
    text = "대한민국의 수도는 서울특별시이다. 인구는 940만 명이다."
    pieces = pruner.prune(text, PruneOptions(keep=0.5)).pieces
    found = [text[a:b] for a, b in zip(pieces.starts, pieces.ends, strict=True)]
    assert [piece for piece in found if piece != " "] == [
        *("대한민국의", "수도는", "서울특별시이다", ".", "인구는", "940만 명이다", ".")
    ]


def test_the_most_important_pieces_are_kept_of_equal_ones_the_earlier() -> None:
    tokenizer = byte_fallback_tokenizer()
    text = "the cat sat on a mat"
    offsets = tokenizer.encode(text, add_special_tokens=False).offsets
    scores = [float(begin) for begin, _ in offsets]
    pruned = pruner_of(tokenizer, GivenScores(scores)).prune(text, PruneOptions(keep=0.5))
    assert text.endswith(pruned.text.strip()) and 0 < len(pruned.text) < len(text)
    pruned = pruner_of(tokenizer, GivenScores([0.5] * len(offsets))).prune(
        text, PruneOptions(keep=0.5)
    )
    assert text.startswith(pruned.text.strip()) and 0 < len(pruned.text) < len(text)


def test_control_tokens_of_a_template_are_never_dropped(gemma: Tokenizer) -> None:
    pruner = pruner_of(gemma)
    text = "<start_of_turn>user\nWhat is the capital of South Korea?<end_of_turn>\n" * 3
    pruned = pruner.prune(text, PruneOptions(keep=0.1))
    assert pruned.text.count("<start_of_turn>") == 3
    assert pruned.text.count("<end_of_turn>") == 3
    assert "capital of South Korea" not in pruned.text


def test_control_tokens_of_another_target_are_kept_too(
    gemma: Tokenizer, published_tokenizer: Callable[[str], Path]
) -> None:
    qwen = Tokenizer.from_file(str(published_tokenizer("qwen3")))
    text = "<|im_start|>user\nThe <|image_pad|> of the cat and the dog<|im_end|>\n" * 3
    options = PruneOptions(keep=0.3)
    assert "<|image_pad|>" not in pruner_of(gemma).prune(text, options).text
    pruned = pruner_of(gemma).protecting(control_tokens(qwen)).prune(text, options)
    assert pruned.text != text
    for name in ("<|im_start|>", "<|image_pad|>", "<|im_end|>"):
        assert pruned.text.count(name) == 3


def test_dropping_never_spells_a_control_token(gemma: Tokenizer) -> None:
    """Found in review: without this, a document could open a turn."""
    text = "it was the start (the great) of turn and more"
    pruner = pruner_of(gemma, Rarity())
    options = PruneOptions(keep=0.3, force_tokens=("start", "of turn"))
    assert "start of turn" in pruner.prune(text, options).text
    assert pruner.protecting(["start of turn"]).prune(text, options).text == text


def test_something_is_always_left(gemma: Tokenizer) -> None:
    pruner = pruner_of(gemma)
    family = "👩‍👩‍👧‍👦"
    assert pruner.prune(family, PruneOptions(keep=0.5)).text == family
    assert pruner.prune(family, PruneOptions(target_tokens=1)).text == family


def test_it_stops_between_steps_when_asked() -> None:
    pruner = pruner_of(byte_level_tokenizer())
    asked: list[int] = []

    def second() -> bool:
        asked.append(1)
        return len(asked) == 2

    options = PruneOptions(target_tokens=10)
    with pytest.raises(Cancelled):
        pruner.prune("서울의 봄은 짧다. " * 40, options, cancelled=second)
    assert len(asked) == 2


def test_a_scorer_that_cannot_be_made_is_tried_once() -> None:
    tried: list[str] = []

    def make(name: str) -> Scorer:
        tried.append(name)
        raise KPruneError("no weights")

    pruner = TextPruner(byte_level_tokenizer(), make, "test")
    for _ in range(2):
        with pytest.raises(KPruneError, match="no weights"):
            pruner.prune("a b c", PruneOptions(keep=0.5))
    assert tried == ["test"]


def test_a_long_run_of_flags_is_cut_in_pairs() -> None:
    pruner = pruner_of(byte_level_tokenizer())
    for count in (63, 64, 65, 129, 20_000):
        text = "a" + "🇦" * count + "\u0301b"
        pieces = pruner.prune(text, PruneOptions(keep=0.9)).pieces
        if count < 1000:
            check_pieces(text, pruner.prune(text, PruneOptions(keep=0.5)))
            check_pieces(text, pruner.prune(text, PruneOptions(keep=0.5, unit="word")))
        assert set(np.diff(pieces.starts)[1:-3]) <= {2}


def test_the_targets_count_decides_what_fits() -> None:
    pruner = pruner_of(byte_level_tokenizer())
    text = "서울의 봄은 짧고 여름은 길다. " * 40
    pruned = pruner.prune(text, PruneOptions(target_tokens=100), count=len)
    assert pruned.tokens_before == len(text)
    assert 90 <= len(pruned.text) == pruned.tokens_after <= 100


def test_a_short_text_is_left_alone() -> None:
    pruner = pruner_of(byte_level_tokenizer())
    text = "The quick brown fox jumps over the lazy dog."
    assert pruner.prune(text, PruneOptions(keep=0.5, min_tokens=100)).text == text
    assert pruner.prune(text, PruneOptions(keep=0.5, min_tokens=5)).text != text


def test_half_a_surrogate_pair_is_the_users_mistake() -> None:
    pruner = pruner_of(byte_level_tokenizer())
    with pytest.raises(KPruneError, match="surrogate"):
        pruner.prune("\ud800 a", PruneOptions(keep=0.5))


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(KPruneError, match=r"has no tokenizer\.json"):
        TextPruner.from_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(KPruneError, match="is not a tokenizer"):
        TextPruner.from_pretrained(tmp_path)


@given(text=st.text("ab \n", max_size=8), data=st.data())
@settings(max_examples=60)
def test_a_token_is_of_the_piece_of_its_first_letter(text: str, data: st.DataObject) -> None:
    spans = data.draw(st.lists(st.tuples(st.integers(0, len(text)), st.integers(0, 3)), max_size=6))
    offsets = sorted((a, min(a + length, len(text))) for a, length in spans)
    pieces = cut_pieces(text, offsets)
    assert len(pieces.of_token) == len(offsets)
    for (begin, end), piece in zip(offsets, pieces.of_token.tolist(), strict=True):
        inside = [n for n in range(begin, end) if not text[n].isspace()] or [begin]
        if begin < end:
            assert pieces.starts[piece] <= inside[0] < pieces.ends[piece]
