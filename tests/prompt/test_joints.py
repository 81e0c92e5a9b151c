"""What did not touch never touches, and a mark goes with its words, whatever is dropped."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st
from support.meaning import fused
from support.prompt_cases import UNICODE, passage_of, pruner_of
from tokenizers import Tokenizer

from vllm_kprune.prompt.budget import PruneOptions
from vllm_kprune.prompt.joints import Joints
from vllm_kprune.prompt.pieces import cut_pieces
from vllm_kprune.prompt.rarity import Rarity
from vllm_kprune.prompt.scorers import RandomScores, Scorer

NUMBER = regex.compile(r"(?<![\w)\]])[-−+]?\p{Nd}+(?:[.,:]\p{Nd}+)*|\p{Nd}+(?:[.,:]\p{Nd}+)*")
PARTS = (
    *("3", "14", "2024", "1.2.3", "10:30", "٣٤", "１２", "½", "²", ".", ",", ":", " ", "\n", "-"),
    *("..", "a", "만", "million", "°C", "$", "=", "(", ")", "年", "約", "，", '"'),
)
NUMERIC = st.lists(st.sampled_from(PARTS), max_size=24).map("".join)
OPTIONS = st.builds(
    PruneOptions,
    keep=st.sampled_from([0.05, 0.3, 0.5, 0.7, 0.9]),
    target_tokens=st.none() | st.integers(1, 30),
    unit=st.sampled_from(["token", "word"]),
    force_tokens=st.sampled_from([(), (".",)]),
    force_digits=st.booleans(),
)


def is_subsequence(part: list[str], whole: list[str]) -> bool:
    rest = iter(whole)
    return all(item in rest for item in part)


@pytest.fixture(scope="module", params=["qwen3", "gemma3"])
def tokenizer(
    request: pytest.FixtureRequest, published_tokenizer: Callable[[str], Path]
) -> Tokenizer:
    return Tokenizer.from_file(str(published_tokenizer(request.param)))


@pytest.mark.parametrize("scorer", [Rarity(), RandomScores(1)], ids=["rarity", "random"])
@given(text=NUMERIC | UNICODE, options=OPTIONS)
@settings(max_examples=60)
@pytest.mark.slow
def test_nothing_fuses_and_every_number_is_one_of_the_text(
    tokenizer: Tokenizer, scorer: Scorer, text: str, options: PruneOptions
) -> None:
    pruned = pruner_of(tokenizer, scorer).prune(text, options)
    assert not list(fused(pruned))
    assert is_subsequence(NUMBER.findall(pruned.text), NUMBER.findall(text))
    if options.force_digits:
        assert NUMBER.findall(pruned.text) == NUMBER.findall(text)


@given(text=NUMERIC | UNICODE, data=st.data())
@settings(max_examples=150)
def test_no_choice_of_pieces_fuses_words(text: str, data: st.DataObject) -> None:
    pieces = passage_of(text, data.draw(st.sampled_from(["token", "word"]))).pieces
    joints = Joints(pieces)
    count = len(pieces.starts)
    wanted = np.array(data.draw(st.lists(st.booleans(), min_size=count, max_size=count)), bool)
    kept = joints.joined(wanted)
    blank = pieces.are(" \n|")
    # All that is added are blanks, marks that keep words apart, and single tokens between words.
    added = kept & ~wanted & ~blank
    assert not added[1:][~(kept[:-1] | kept[1:])[: len(added) - 1]].any()
    texts = [text[a:b] for a, b in zip(pieces.starts, pieces.ends, strict=True)]
    left = joints.text(kept)
    assert left.replace(" ", "") == "".join(np.array(texts, dtype=object)[kept]).replace(" ", "")


@pytest.mark.parametrize(
    ("text", "dropped", "left"),
    [
        ("three tackles (118) for", "()", "three tackles 118 for"),
        ("Row 1 (Row 2)", "()", "Row 1 Row 2"),
        ('다음은 "Dialog1" 상자', '"', "다음은 Dialog1 상자"),
        ("a mount of game-winning drives", "of", "a mount game-winning drives"),
        ("of 21 patients. The 14 women", ".The", "of 21 patients 14 women"),
        ("bread, wine, salt", "wine", "bread, salt"),
        ("It rained (a lot). We left.", "alot", "It rained. We left."),
        ("It rained. We left!", "Itrained.", "We left!"),
        ("bread – wine – salt", "wine", "bread salt"),
        ("first line\n\nsecond line", "second", "first line\n\nline"),
        ("美国的首都在华盛顿。", "首都在", "美国的 华盛顿。"),
        ("甲，乙和丙。", "，", "甲，乙和丙。"),
    ],
)
def test_what_stays_between_two_words_keeps_them_apart(text: str, dropped: str, left: str) -> None:
    pieces = passage_of(text).pieces
    joints = Joints(pieces)
    gone = [
        text[a:b] in dropped and not text[a].isspace()
        for a, b in zip(pieces.starts, pieces.ends, strict=True)
    ]
    assert joints.text(joints.joined(~np.array(gone))) == left


def test_blanks_at_the_edges_stay() -> None:
    pieces = cut_pieces(" the cat sat\n", ())
    joints = Joints(pieces)
    assert joints.text(joints.joined(pieces.starts >= 5)) == " cat sat\n"
    assert joints.text(joints.joined(pieces.starts == 5)) == "cat"
