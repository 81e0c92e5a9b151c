"""Each decision about characters, as in the documentation's table."""

import numpy as np
import pytest
import regex
from support.guard_oracle import is_allowed, policy_of

from vllm_kprune.guard.characters import NUM_CODE_POINTS, allowed_characters
from vllm_kprune.guard.policy import SCRIPTS, GuardPolicy
from vllm_kprune.profile import LANGUAGES

KO = policy_of(languages="ko")
ENKO = policy_of(languages="en,ko")
KO_ASCII = policy_of(languages="ko", latin="ascii")
KO_LATIN = policy_of(languages="ko", latin="all")
HANGUL = policy_of(scripts="Hangul")
HANJA = policy_of(languages="ko", hanja="ksx1001")
ALL_HANJA = policy_of(languages="ko", hanja="all")
JA = policy_of(languages="ja")
AR = policy_of(languages="ar")
HI = policy_of(languages="hi")
RU = policy_of(languages="ru")
DIGITS = policy_of(scripts="Common")

CODE = 'def f(x: int) -> str:\n\treturn f"{x!r}\\u0000" # $a[0] & ~b | c^d; `e` @ \\ <%= ?:>\r\n\f'


@pytest.mark.parametrize(
    ("policy", "text"),
    [
        (KO, "한글 ㅋㅋㅋ ㅏ ꥠ ힰ ﾡ"),
        (KO, "\u1112\u1161\u11ab"),
        (KO, "NFD: \u110b\u1175\u1105\u1165\u11ab"),
        (KO, "LG전자 iPhone 3km km/h www.example.com"),
        (KO, CODE),
        (KO, "㉠ ㉮ ㈜ ㈎"),
        (KO, "「인용」 『책』 〈글〉 《책》 〔〕 【】 、。 ・ 〜"),
        (KO, "‘가’ “나” … · • ※ ○ ● ■ → ↔ ① ② ⓐ Ⅳ ½ №"),
        (KO, "℃ ℉ ㎏ ㎡ ㏄ ￦ ₩ € $ % ‰ ′ ″ ° ± × ÷ ≤ ∞ ∑ ∆ µ"),
        (KO, "０１２３（）！？～"),
        (KO, "😀 👩‍👩‍👧‍👦 🏳️‍🌈 👍🏽 🇰🇷 🏴󠁧󠁢󠁥󠁮󠁧󠁿 1️⃣ ❤️ ☎ ©"),
        (KO, "𝐀𝛼𝟙 ⟨x⟩ ∀x∈ℕ"),
        (KO, " \t\n\r\v\f\u00a0\u2003\u2028\u3000\u200b\u2060\ufeff"),
        (KO, "\x00\x07\x1b\x7f\x85\u200d\u200e\u202e\u00ad"),
        (KO, "e\u0301"),
        (KO, "Ogród Île Škoda Øre Þór naïve Ÿ ĳ ſ Ștefan Țara"),
        (KO_ASCII, "iPhone Ⅳ e\u0301"),
        (KO_LATIN, "café ﬁ ª ＡＢＣ Å Việt Łódź ŝ ẞ"),
        (ENKO, "café naïve ﬁ Ⅷ ª ＡＢＣ Å Việt Łódź ŝ"),
        (HANGUL, "한글 123 😀"),
        (HANJA, "大韓民國 漢字"),
        (ALL_HANJA, "们学国㐀𠀀々〆㊀"),
        (JA, "日本語 ひらがな カタカナー ｶﾅ ゛゙ 々〆 ㍉ ㊀"),
        (AR, "العربية، ـ ؟ َ ١٢٣"),
        (HI, "हिन्दी। ॥ १२३"),
        (RU, "Привет ё и\u0306"),
        (DIGITS, "12:34, $5.00 😀\n"),
    ],
)
def test_these_are_allowed(policy: GuardPolicy, text: str) -> None:
    table = allowed_characters(policy)
    assert [c for c in text if not table[ord(c)]] == []


@pytest.mark.parametrize(
    ("policy", "text"),
    [
        (KO, "漢们ひカーㄅ"),
        (KO, "Ａªﬁạơƒȳ"),
        (KO_ASCII, "éßÖłșẞﬁ"),
        (KO, "㊀㍿〆々〇㋿㍉ｶﾞ゙"),
        (KO, "αμΩπ"),
        (KO, "Приветשไทयก"),
        (KO, "،ـ؟َ।॥"),
        (KO, "\u1680\u2800"),
        (KO, "\ufffd"),
        (KO, "\ue000\uf8ff\U000f0000\U0010fffd"),
        (KO, "\u0378\ufdd0\uffff\U0010ffff"),
        (ENKO, "漢ひカーдα"),
        (HANGUL, "aZéＡ"),
        (HANJA, "们学国㐀ー〆"),
        (JA, "한ㅋạд"),
        (AR, "।אд"),
        (DIGITS, "aé한漢"),
    ],
)
def test_these_are_refused(policy: GuardPolicy, text: str) -> None:
    table = allowed_characters(policy)
    assert [c for c in text if table[ord(c)]] == []


@pytest.mark.parametrize(
    ("switch", "gone", "kept"),
    [
        ("digits", "0９½Ⅳ①²", "a가.😀 \n"),
        ("punctuation", ".,!?()[]{}+=<>$%`~^|©™「」·※→", "a가0😀👍🏽❤ \n\u0301\u200d"),
        ("emoji", "😀👍🏽❤🇰☎\ufe0f\u20e3\U000e0067", "a가0.!#*©™→‼ \n\u200d"),
    ],
)
def test_digits_punctuation_and_emoji_can_be_switched_off(
    switch: str, gone: str, kept: str
) -> None:
    on, off = (
        allowed_characters(ENKO),
        allowed_characters(policy_of(languages="en,ko", **{switch: False})),
    )
    both = policy_of(languages="en,ko", allow=gone, **{switch: False})
    gone = "".join(c for c in gone if on[ord(c)])
    assert gone
    assert [c for c in gone if off[ord(c)]] == []
    assert [c for c in kept if not off[ord(c)]] == []
    assert all(allowed_characters(both)[ord(c)] for c in gone)


def test_all_of_latin_is_what_a_language_with_latin_script_allows() -> None:
    assert np.array_equal(allowed_characters(KO_LATIN), allowed_characters(ENKO))
    for latin in ("ascii", "all"):
        named = policy_of(languages="en,ko", latin=latin)
        assert np.array_equal(allowed_characters(named), allowed_characters(ENKO))
        literal = policy_of(scripts="Hangul", latin=latin)
        assert np.array_equal(allowed_characters(literal), allowed_characters(HANGUL))


def test_extra_characters_override_everything_but_surrogates() -> None:
    table = allowed_characters(GuardPolicy(scripts=("Hangul",), allow="漢\ufffd\ue000\ud800"))
    assert [c for c in "漢\ufffd\ue000\ud800" if table[ord(c)]] == ["漢", "\ufffd", "\ue000"]


def test_the_hanja_are_those_of_the_korean_standard() -> None:
    assert allowed_characters(HANJA).sum() - allowed_characters(KO).sum() == 4888


@pytest.mark.parametrize(
    "policy",
    [KO, KO_ASCII, KO_LATIN, HANGUL, JA, policy_of(languages="en,el,th", allow="漢", digits=False)],
    ids=lambda policy: f"{policy.label}-{policy.latin}",
)
@pytest.mark.slow
def test_every_code_point_is_judged_by_the_rules(policy: GuardPolicy) -> None:
    table = allowed_characters(policy)
    judge = is_allowed.__wrapped__
    points = [*range(0x3400), *range(0xA960, 0xAC80), *range(0xF8FF, 0x10100)]
    points += [*range(0x3400, 0xF900, 13), *range(0x10100, NUM_CODE_POINTS, 131)]
    points = [c for c in points if not 0xD800 <= c < 0xE000]
    assert [hex(c) for c in points if table[c] != judge(chr(c), policy)] == []


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_known_script_is_one_of_unicode(script: str) -> None:
    assert allowed_characters(policy_of(scripts=script)).any()
    assert regex.compile(rf"\p{{Script={script}}}")


def test_the_scripts_of_all_languages_are_known() -> None:
    assert {s for language in LANGUAGES.values() for s in language.scripts} <= set(SCRIPTS)


def test_tables_are_shared_and_not_to_be_written_to() -> None:
    assert allowed_characters(KO) is allowed_characters(policy_of(languages=["KO"]))
    assert not allowed_characters(KO).flags.writeable
