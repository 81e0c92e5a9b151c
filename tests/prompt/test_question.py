"""The scorer that looks at the question: sentences that share its words stay."""

import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.prompt_cases import passage_of

from vllm_kprune.prompt.question import Question, sentence_relevance
from vllm_kprune.prompt.rarity import Rarity

ENGLISH = (
    "The castle was built by a duke in the north. It burned down twice. "
    "Its gardens were designed by Maria Lindqvist. Visitors may enter on weekdays."
)


def mean(text: str, part: str, query: str) -> float:
    """Mean relevance of the words of a part of a text."""
    pieces = passage_of(text).pieces
    relevance = sentence_relevance(pieces, query)[pieces.sentences]
    start = text.index(part)
    inside = (pieces.ends > start) & (pieces.starts < start + len(part))
    return float(relevance[inside].mean())


@settings(max_examples=200)
@given(st.text(), st.text())
def test_relevance_is_a_share_and_only_ever_adds_to_rarity(text: str, query: str) -> None:
    passage = passage_of(text)
    relevance = sentence_relevance(passage.pieces, query)
    assert ((relevance >= 0) & (relevance <= 1 + 1e-9)).all()
    assert (Question().scores(passage, query=query) >= Rarity().scores(passage)).all()


def test_without_a_question_it_is_rarity() -> None:
    passage = passage_of(ENGLISH)
    assert (Question().scores(passage) == Rarity().scores(passage)).all()
    assert (Question().scores(passage, query="?") == Rarity().scores(passage)).all()


def test_a_sentence_with_the_questions_words_matters_more_than_the_others() -> None:
    query = "Who was the designer of the gardens?"
    asked = mean(ENGLISH, "Maria Lindqvist", query)
    assert asked > 0.6
    assert 0 < mean(ENGLISH, "burned down", query) < asked / 2
    assert mean(ENGLISH, "The castle was", query) == 0


@pytest.mark.parametrize(
    ("text", "asked", "other", "query"),
    [
        (
            "성은 공작이 지었다. 두 번 불탔다. 정원은 린드크비스트가 설계했다. 평일에 연다.",
            "린드크비스트",
            "공작",
            "정원을 누가 설계했나요?",
        ),
        (
            "城堡是公爵建造的。它被烧毁过两次。花园由林德奎斯特设计。平日开放。",
            "林德奎斯特",
            "公爵",
            "花园是谁设计的？",
        ),
    ],
)
def test_words_are_matched_without_particles_and_spaces(
    text: str, asked: str, other: str, query: str
) -> None:
    assert mean(text, asked, query) > 0.5 > 0.2 > mean(text, other, query)


@pytest.mark.slow
def test_relevance_is_the_same_in_every_process() -> None:
    """A sum of floats depends on its order, and the order of a set on the process."""
    words = "Rhine Danube glacier Marseille vineyard parliament copper lantern violet Oslo quartz"
    code = (
        "import sys\n"
        "from vllm_kprune.prompt.question import sentence_relevance\n"
        "from vllm_kprune.prompt.pieces import cut_pieces\n"
        "text = sys.argv[1]\n"
        "for n in range(1, 12):\n"
        "    words = ' '.join(text.split()[:n])\n"
        "    print(sentence_relevance(cut_pieces(words, ()), text).tobytes().hex())"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code, words],
            capture_output=True,
            text=True,
            check=True,
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
        ).stdout
        for seed in "123"
    }
    assert len(outputs) == 1
