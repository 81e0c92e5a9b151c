"""Word information: words are found in any script and looked up in their own language."""

from unicodedata import normalize

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.prompt_cases import UNICODE, passage_of

from vllm_kprune.prompt.rarity import Rarity
from vllm_kprune.prompt.words import read


def nats(text: str) -> dict[str, float]:
    """Nats of each part of a text that is no blank."""
    words = read(text)
    spans = zip(words.starts.tolist(), words.ends.tolist(), words.nats.tolist(), strict=True)
    return {text[start:end]: value for start, end, value in spans if not text[start].isspace()}


@settings(max_examples=300)
@given(st.text() | UNICODE)
def test_parts_are_the_whole_text_one_after_the_other(text: str) -> None:
    words = read(text)
    assert words.starts.tolist() == [0, *words.ends.tolist()][: len(words.starts)]
    assert (words.starts < words.ends).all()
    assert [*words.ends.tolist(), 0][-2 if len(text) else 0] == len(text)
    assert len(words.kinds) == len(words.nats) == len(words.starts)
    assert not (words.nats < 0).any()


@pytest.mark.parametrize(
    ("text", "function_word"),
    [
        ("Die Frau und der Mann sind in die Stadt gegangen, weil es dort schön ist.", "Die"),
        ("La femme et l’homme sont dans la ville parce qu’il y fait beau.", "sont"),
        ("Женщина и мужчина были в городе, потому что там было хорошо.", "были"),
        ("وقال الرجل إن المرأة كانت في المدينة مع من كان هناك", "كانت"),
    ],
)
def test_a_text_is_read_in_its_own_language(text: str, function_word: str) -> None:
    assert nats(text)[function_word] < 7.5


def test_the_same_letters_are_another_word_in_another_language() -> None:
    german = nats("Die Frau und der Mann sind in die Stadt gegangen und nicht mehr da.")
    english = nats("They say that people die of it in the city and that nothing is done.")
    assert german["die"] < english["die"] - 2


@pytest.mark.parametrize(
    ("text", "negation"),
    [
        ("The patient does not take any of the drugs", "not"),
        ("The patient doesn’t take any of the drugs", "doesn’t"),
        ("환자는 그 약을 먹지 않는다", "않"),
        ("환자는 그 약을 안 먹는다", "안"),
        ("그 문제가 없는 것으로 나왔다", "없"),
        ("病人不能吃这里的药", "不能"),
        ("Der Patient nimmt das nicht mit der Hand", "nicht"),
    ],
)
def test_what_turns_a_sentence_round_goes_last(text: str, negation: str) -> None:
    found = nats(text)
    matching = [value for word, value in found.items() if word.startswith(negation)]
    assert matching == [14.0] * len(matching) != []
    assert min(found.values()) < 10


def test_a_korean_word_is_as_rare_as_its_rarest_part() -> None:
    found = nats("정당의 의석을 국회가 그는 의결했다")
    assert min(found["정당의"], found["국회가"]) > 7 > found["그는"]


def test_traditional_characters_have_the_information_of_simplified_ones() -> None:
    traditional, simplified = read("歐洲聯盟的總部"), read("欧洲联盟的总部")
    assert (traditional.nats == simplified.nats).all()
    assert len(traditional.nats) == 4


def test_han_characters_between_kana_are_read_as_japanese() -> None:
    assert nats("東京は日本の首都です")["東京は"] < 9
    assert nats("私は仕事をしています")["仕事をしています"] < 9


def test_numbers_and_unlisted_names_are_rarer_than_listed_words() -> None:
    found = nats("In 1871 Szczebrzeszyn was a town with few people in it")
    assert min(found["1871"], found["Szczebrzeszyn"]) > found["town"] > found["was"]


def test_a_name_with_an_apostrophe_is_as_rare_as_the_name() -> None:
    assert nats("Newton's apple")["Newton's"] == nats("Newton apple")["Newton"]
    assert nats("We don't know")["don't"] == nats("We don’t know")["don’t"]


def test_a_script_without_a_list_is_judged_by_the_ids_of_tokens() -> None:
    scores = Rarity().scores(passage_of("กขคง", ids=(100_000, 5, 900, 70)))
    assert scores.argsort().tolist() == [1, 3, 2, 0]


def test_equal_tokens_are_dropped_all_over_the_text() -> None:
    scores = Rarity().scores(passage_of("a " * 200))[::2]
    assert np.ptp(scores) < 0.02
    dropped = np.argsort(-scores, kind="stable")[100:]  # as the pruner sorts
    assert np.allclose(np.histogram(dropped, 4, (0, 200))[0], 25, atol=3)


MIXED = (
    "The café in Zürich naïvely charges 4,500 원. 대한민국의 수도는 서울특별시이다. 환자는 약을 "
    "먹지 않는다. が 東京は日本の首都です。 Việt Nam có nhiều thành phố."
)


def test_decomposed_text_has_the_words_of_the_composed() -> None:
    composed, decomposed = nats(MIXED), nats(normalize("NFD", MIXED))
    assert {normalize("NFC", word): value for word, value in decomposed.items()} == composed


@given(st.lists(st.sampled_from([*MIXED.split(), "각", "e\u0301", "\u0301", "क़", "a"]), max_size=9))
def test_words_do_not_depend_on_the_form_of_their_characters(parts: list[str]) -> None:
    text = normalize("NFC", " ".join(parts))
    composed, decomposed = read(text), read(normalize("NFD", text))
    assert composed.kinds == decomposed.kinds
    assert np.array_equal(composed.nats, decomposed.nats, equal_nan=True)


def test_decomposed_korean_does_not_outrank_what_is_beside_it() -> None:
    korean = "대한민국의 수도는 서울특별시이며 인구는 약 구백만 명이다. "
    for first, second in (("NFD", "NFC"), ("NFC", "NFD")):
        text = normalize(first, korean * 3) + normalize(second, korean * 3)
        scores = Rarity().scores(passage_of(text))
        assert abs(float(np.diff(np.array_split(scores, 2), axis=0).mean())) < 0.05
