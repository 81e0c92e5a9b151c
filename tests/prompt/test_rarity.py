"""Word information: words are found in any script and looked up in their own language."""

from unicodedata import normalize

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_kprune.prompt.rarity import Rarity, find_words
from vllm_kprune.prompt.scorers import Tokens


def nats(text: str) -> dict[str, float]:
    """Nats of each word of a text."""
    words = find_words(text)
    spans = zip(words.starts.tolist(), words.ends.tolist(), words.nats.tolist(), strict=True)
    return {text[start:end]: value for start, end, value in spans}


def characters(text: str, ids: tuple[int, ...] | None = None) -> Tokens:
    """Every character as a token."""
    offsets = tuple((n, n + 1) for n in range(len(text)))
    return Tokens(text, ids or tuple(range(len(text))), offsets)


@settings(max_examples=300)
@given(st.text())
def test_words_are_in_order_disjoint_and_all_that_is_not_blank(text: str) -> None:
    words = find_words(text)
    assert (words.starts < words.ends).all()
    assert (words.ends[:-1] <= words.starts[1:]).all()
    covered = {n for a, b in zip(words.starts, words.ends, strict=True) for n in range(a, b)}
    assert {n for n, c in enumerate(text) if not c.isspace()} - covered == set()
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
        ("환자는 약을 먹지 않는다", "않"),
        ("환자는 약을 안 먹는다", "안"),
        ("문제가 없는 것으로 나왔다", "없"),
        ("病人不能吃这里的药", "不能"),
        ("Der Patient nimmt das nicht mit der Hand", "nicht"),
    ],
)
def test_what_turns_a_sentence_round_goes_last(text: str, negation: str) -> None:
    found = nats(text)
    matching = [value for word, value in found.items() if word.startswith(negation)]
    assert matching == [14.0] * len(matching) != []
    assert min(found.values()) < 10


def test_korean_particles_are_separated_from_the_nouns_before_them() -> None:
    found = nats("정당의 의석을 국회가 의결했다")
    assert max(found["의"], found["을"], found["가"]) < 5
    assert min(found["정당"], found["국회"]) > 7


def test_traditional_characters_have_the_information_of_simplified_ones() -> None:
    traditional, simplified = find_words("歐洲聯盟的總部"), find_words("欧洲联盟的总部")
    assert (traditional.nats == simplified.nats).all()
    assert len(traditional.nats) == 4


def test_han_characters_between_kana_are_read_as_japanese() -> None:
    assert nats("東京は日本の首都です")["東京"] < 9
    assert nats("私は仕事をしています")["仕事"] < 9


def test_numbers_and_unlisted_names_are_rarer_than_listed_words() -> None:
    found = nats("In 1871 Szczebrzeszyn was a town with few people in it")
    assert min(found["1871"], found["Szczebrzeszyn"]) > found["town"] > found["was"]


def test_a_name_with_an_apostrophe_is_as_rare_as_the_name() -> None:
    assert nats("Newton's apple")["Newton's"] == nats("Newton apple")["Newton"]
    assert nats("We don't know")["don't"] == nats("We don’t know")["don’t"]


def test_a_script_without_a_list_is_judged_by_the_ids_of_tokens() -> None:
    scores = Rarity().scores(characters("กขคง", ids=(100_000, 5, 900, 70)))
    assert scores.argsort().tolist() == [1, 3, 2, 0]


def test_equal_tokens_are_dropped_all_over_the_text() -> None:
    scores = Rarity().scores(characters("a " * 200))[::2]
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
    composed, decomposed = find_words(text), find_words(normalize("NFD", text))
    assert composed.nats.tolist() == decomposed.nats.tolist()


def test_decomposed_korean_does_not_outrank_what_is_beside_it() -> None:
    korean = "대한민국의 수도는 서울특별시이며 인구는 약 구백만 명이다. "
    for first, second in (("NFD", "NFC"), ("NFC", "NFD")):
        text = normalize(first, korean * 3) + normalize(second, korean * 3)
        middle = len(normalize(first, korean * 3))
        scores = Rarity().scores(characters(text))
        assert abs(float(scores[:middle].mean()) - float(scores[middle:].mean())) < 1.0
