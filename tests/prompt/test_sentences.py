"""The default scorer: sentences that share words with the question, and in them rare words."""

from itertools import pairwise
from unicodedata import normalize

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.prompt_cases import UNICODE, passage_of

from vllm_kprune.prompt.pruner import InputPruner
from vllm_kprune.prompt.rarity import Rarity
from vllm_kprune.prompt.sentences import Sentences

TEXTS = {
    "en": (
        "The castle was built by a duke in the north. It burned down twice in a century. "
        "Its gardens were designed by Maria Lindqvist in 1871. Visitors may enter on weekdays.",
        "Who designed the gardens?",
        "Maria Lindqvist",
        "duke",
    ),
    "ko": (
        "성은 북쪽의 공작이 지었다. 백 년 동안 두 번 불탔다. 정원은 1871년에 린드크비스트가 "
        "설계했다. 방문객은 평일에 들어갈 수 있다.",
        "정원을 누가 설계했나요?",
        "린드크비스트가",
        "공작이",
    ),
    "zh": (
        "城堡是由北方的公爵建造的。它在一百年里被烧毁过两次。花园是由林德奎斯特设计的。游客可以在平日入内。",
        "花园是谁设计的？",
        "林德奎斯特",
        "公爵",
    ),
}


@pytest.mark.parametrize("language", TEXTS)
def test_what_is_asked_for_stays_and_what_is_not_goes_whole(language: str) -> None:
    text, question, asked, other = TEXTS[language]
    pruned = InputPruner().prune(text, query=question, keep=0.4)
    assert asked in pruned.text
    assert other not in pruned.text
    pruned = InputPruner().prune(text, query=question, keep=0.85)
    assert asked in pruned.text


@given(text=UNICODE | st.text())
@settings(max_examples=100)
def test_without_a_question_it_is_rarity(text: str) -> None:
    passage = passage_of(text)
    for query in (None, "", "Qwrtz?"):
        if not query or query not in text:
            assert (Sentences().scores(passage, query=query) == Rarity().scores(passage)).all()


def test_sentences_are_ranked_before_words() -> None:
    text, question, _, _ = TEXTS["en"]
    passage = passage_of(text)
    scores = Sentences().scores(passage, query=question)
    words = ~passage.pieces.are(" \n|")
    sentences = [scores[words & (passage.pieces.sentences == n)] for n in range(4)]
    best = sorted(sentences, key=lambda one: -float(one.max()))
    assert best[0] is sentences[2]
    for better, worse in pairwise(best):
        assert better.min() > worse.max()


COFFEE = "커피에 에스프레소와 시럽을 넣었고 잔에 우유가 담겼다."


@pytest.mark.parametrize(
    ("text", "question", "asked"),
    [
        (COFFEE, "우유를 넣나요?", "우유가"),
        (normalize("NFD", COFFEE), "우유를 넣나요?", normalize("NFD", "우유가")),
        ("Flamenco dancers and cathedral choirs met by the rivers.", "Which river?", "rivers"),
        ("蝙蝠、琵琶和葡萄在漢城的市場。", "汉城有什么？", "漢城"),
    ],
)
def test_the_questions_words_stay_longest_in_the_last_sentence(
    text: str, question: str, asked: str
) -> None:
    passage = passage_of(text)
    pieces, scores = passage.pieces, Sentences().scores(passage, query=question)
    (place,) = [n for n, at in enumerate(pieces.starts) if text[at : pieces.ends[n]] == asked]
    assert scores.argmax() == place
    # Without the question another word is rarer, so this is not by chance.
    assert Rarity().scores(passage).argmax() != place


def test_sentences_end_where_people_see_it() -> None:
    text = "Dr. J. Smith paid 3.5 million to U.S. banks.) He left!\nNo. 5 stayed… 甲乙。丙丁！"
    pieces = passage_of(text).pieces
    found = [text[pieces.starts[pieces.sentences == n][0] :] for n in np.unique(pieces.sentences)]
    first = list(dict.fromkeys(one.split()[0] for one in found))
    assert first == ["Dr.", "He", "No.", "甲乙。丙丁！", "丙丁！"]
