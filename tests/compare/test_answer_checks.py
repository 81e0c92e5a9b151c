"""What counts as wrong in an answer, and what does not: language, words, characters, loops."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_kprune.compare.suites.answer_checks import Checks, Findings, find_loop

KOREAN = "오늘은 날씨가 좋아서 강가를 따라 오래 걸었습니다."
ENGLISH = "The weather was fine, so we walked along the river for hours."
CHINESE = "今天天气很好，所以我们沿着河边走了很久。"
JAPANESE = "今日は天気がよかったので、川に沿って長い間歩きました。"
WORDS = st.sampled_from([*KOREAN.split(), "그래서", "사람들이", "천천히", "했습니다.", "12", "—"])


def marked(text: str, findings: Findings) -> list[str]:
    return [text[span.start : span.end] for span in findings.spans]


@pytest.mark.parametrize(
    ("text", "language"),
    [(KOREAN, "ko"), (ENGLISH, "en"), (CHINESE, "zh"), (JAPANESE, "ja")],
    ids=["ko", "en", "zh", "ja"],
)
def test_an_answer_in_its_language_has_no_flaw(checks: Checks, text: str, language: str) -> None:
    findings = checks(text, language)
    assert findings.lines is True
    assert findings.words is (None if language == "en" else True)
    assert findings.spans == ()


@given(words=st.lists(WORDS, min_size=5, max_size=30))
@settings(max_examples=50)
def test_korean_words_in_any_order_leave_no_foreign_character(words: list[str]) -> None:
    findings = Checks(lambda line: "ko")(" ".join(words), "ko")
    assert not findings.foreign
    assert findings.words is not False


@pytest.mark.parametrize("other", [ENGLISH, CHINESE, JAPANESE], ids=["en", "zh", "ja"])
def test_one_line_of_another_language_fails_the_answer(checks: Checks, other: str) -> None:
    text = f"{KOREAN}\n{other}\n{KOREAN}"
    findings = checks(text, "ko")
    assert findings.lines is False
    assert findings.words is None
    assert other in marked(text, findings)


def test_a_language_that_is_not_sure_is_none_and_punctuation_does_not_count(checks: Checks) -> None:
    assert checks.identify("xx yy zz qq ww") == checks.identify("1 2 3 4 5") == ""
    assert checks.identify(f"“{KOREAN}” — …!!!") == "ko"
    assert checks("xx yy zz qq ww", "en").lines is False


def test_short_lines_are_not_judged(checks: Checks) -> None:
    assert checks("Yes, of course.", "ko").lines is None
    assert checks(f"{KOREAN}\nSource: Daily News", "ko").lines is True


@pytest.mark.parametrize("word", ["however", "test", "because"])
@pytest.mark.parametrize("particle", ["", "를", "에서"])
def test_an_english_word_among_korean_ones_fails_the_words(
    checks: Checks, word: str, particle: str
) -> None:
    text = f"오늘은 {word}{particle} 날씨가 좋아서 강가를 따라 오래 걸었습니다."
    findings = checks(text, "ko")
    assert (findings.lines, findings.words) == (True, False)
    assert marked(text, findings) == [word]


@pytest.mark.parametrize(
    "fine",
    [
        "Google",
        "NASA",
        "kg",
        "`print`",
        "https://example.com/page/about",
        "someone@example.com",
        "qwxzv",
    ],
)
def test_names_units_code_and_addresses_are_no_english_words(checks: Checks, fine: str) -> None:
    text = f"오늘은 {fine} 때문에 강가를 따라 오래 걸었습니다."
    assert checks(text, "ko").words is True


def test_code_in_fences_is_not_judged_even_if_it_never_ends(checks: Checks) -> None:
    code = "```python\nfor line in lines_of_the_file: print(line, because)\n"
    for text in (f"{KOREAN}\n{code}```\n{KOREAN}", f"{KOREAN}\n{code}"):
        assert checks(text, "ko").spans == ()


@pytest.mark.parametrize("character", ["漢", "の", "ж", "ก", "ع", "शी"])
def test_a_character_of_another_script_is_found_in_its_place(
    checks: Checks, character: str
) -> None:
    text = f"오늘은 날씨가{character} 좋아서 강가를 따라 오래 걸었습니다."
    findings = checks(text, "ko")
    assert findings.foreign
    assert marked(text, findings) == [character]


@pytest.mark.parametrize("fine", ["café", "π ≈ 3.14", "😀 → ①", "Ⅳ", "½", "ㅋㅋㅋ", "—…·"])
def test_latin_greek_signs_and_emoji_are_at_home_everywhere(checks: Checks, fine: str) -> None:
    assert not checks(f"{KOREAN} {fine}", "ko").foreign
    assert not checks(f"{ENGLISH} {fine.replace('ㅋ', '')}", "en").foreign


def test_what_the_prompt_quotes_may_be_quoted(checks: Checks) -> None:
    text = "溫故知新은 옛것을 익히고 새것을 안다는 뜻입니다."
    assert checks(text, "ko").foreign
    assert not checks(text, "ko", prompt="溫故知新의 뜻은 무엇인가요?").foreign


def test_the_language_that_was_asked_in_is_no_third_script(checks: Checks) -> None:
    text = f"{ENGLISH} (강가를 따라)"
    assert checks(text, "en").foreign
    assert not checks(text, "en", asked="ko").foreign
    assert checks(f"{text} 漢", "en", asked="ko").foreign


def test_invalid_utf8_is_found_but_not_where_the_answer_was_cut(checks: Checks) -> None:
    assert checks("안녕\ufffd하세요", "ko").broken
    assert checks("안녕하세요\ufffd", "ko").broken
    assert not checks("안녕하세요\ufffd", "ko", cut=True).broken
    assert not checks("안녕\ufffd하세요", "ko").foreign


@given(
    unit=st.text("가나다라 abc.,", min_size=1, max_size=40).filter(lambda t: t.strip(" .,")),
    begin=st.text("xyz ", max_size=20),
    cut=st.integers(0, 10),
)
@settings(max_examples=200)
def test_what_is_said_again_and_again_is_a_loop(unit: str, begin: str, cut: int) -> None:
    times = max(6, 80 // len(unit) + 2)
    text = begin + unit * times
    loop = find_loop(text[: len(text) - cut % len(unit)])
    assert loop is not None
    assert loop[0] <= len(begin) + len(unit)


@pytest.mark.parametrize(
    "text",
    ["", "가", KOREAN, ENGLISH, "-" * 80, "." * 200, "=" * 50 + "\n", "ha ha ha ha ha ha"],
)
def test_other_texts_are_no_loops(text: str) -> None:
    assert find_loop(text) is None
