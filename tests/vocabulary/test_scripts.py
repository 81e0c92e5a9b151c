"""Tokens are judged by the scripts of their characters, finished or not."""

import pytest

from vllm_kprune.errors import KPruneError
from vllm_kprune.profile import Profile
from vllm_kprune.vocabulary.scripts import ScriptJudge, hanja_characters, main_script

ENKO = Profile(name="enko", languages=("en", "ko"))
JA = Profile(name="ja", languages=("ja",))
ZH = Profile(name="zh", languages=("zh",))
HANJA = Profile(name="hanja", languages=("ko",), hanja="ksx1001")
THAI = Profile(name="th", languages=("th",))


@pytest.mark.parametrize(
    ("profile", "token", "verdict"),
    [
        (ENKO, " 한글", "script"),
        (ENKO, "ᄒ", "script"),
        (ENKO, "ㅋㅋ", "script"),
        (ENKO, "123", "script"),
        (ENKO, "·", "script"),
        (ENKO, "…", "script"),
        (ENKO, "、。「」", "script"),
        (ENKO, "👩‍👩‍👧", "script"),
        (ENKO, "\u0301", "script"),
        (ENKO, "€", "script"),
        (ENKO, " ", "script"),
        (ENKO, " (", "script"),
        (ENKO, " 🙂", "script"),
        (ENKO, "==", "shared"),
        (ENKO, " }}", "shared"),
        (ENKO, ");\n", "shared"),
        (ENKO, "\n\n    ", "shared"),
        (ENKO, "…”", "script"),
        (ENKO, "the", "shared"),
        (ENKO, "café", "shared"),
        (ENKO, "αβγ", "shared"),
        (ENKO, "LG전자", "shared"),
        (ENKO, "中", "foreign"),
        (ENKO, "漢", "foreign"),
        (ENKO, "한中", "foreign"),
        (ENKO, "かな", "foreign"),
        (ENKO, "カ", "foreign"),
        (ENKO, "Привет", "foreign"),
        (ENKO, "ไทย", "foreign"),
        (ENKO, "عربي", "foreign"),
        (ENKO, "a中", "foreign"),
        (JA, "かなカナー", "script"),
        (JA, "漢字かなカナー", "shared"),
        (JA, "漢", "script"),
        (JA, "龘", "shared"),
        (ZH, "学", "script"),
        (ZH, "學", "script"),
        (ZH, "学校", "shared"),
        (ZH, "かな", "foreign"),
        (JA, "한", "foreign"),
        (HANJA, "漢", "script"),
        (HANJA, "漢字", "shared"),
        (HANJA, "学", "shared"),
        (HANJA, "한漢", "shared"),
        (THAI, "ไทย", "script"),
    ],
)
def test_whole_characters_are_judged_by_their_script(
    profile: Profile, token: str, verdict: str
) -> None:
    assert ScriptJudge(profile)(token.encode()) == verdict


@pytest.mark.parametrize(
    ("profile", "token", "verdict"),
    [
        *[(ENKO, bytes([lead]), "script") for lead in (0xEA, 0xEB, 0xEC, 0xED)],
        *[(ENKO, bytes([lead]), "shared") for lead in (0xE5, 0xE6, 0xE7, 0xE8, 0xE9)],
        *[(JA, bytes([lead]), "shared") for lead in (0xE5, 0xE6, 0xE9)],
        (ENKO, b"\xe2", "script"),
        (ENKO, b"\xc3", "script"),  # the multiplication sign
        (ENKO, b"\xc4", "shared"),
        (ENKO, b"\xd0", "foreign"),
        (ENKO, b"\xe0\xb8", "script"),  # the sign of the baht
        (ENKO, b"\xe0\xb9", "foreign"),
        (THAI, b"\xe0\xb8", "script"),
        (ENKO, b"\xea\xb0", "script"),
        (ENKO, b"\xea\x80", "foreign"),  # Yi
        (ENKO, b"\xed\x9e", "script"),
        (ENKO, b"\xf0\x9f", "script"),
        (ENKO, b"\xf0\x9f\x98", "script"),
        (ENKO, b"\xf0\xa0", "shared"),
        (JA, b"\xf0\xa0", "shared"),
        (ENKO, "한".encode() + b"\xec", "script"),
        (ENKO, "中".encode() + b"\xec", "foreign"),
        (ENKO, "한".encode() + b"\xe6", "shared"),
        (HANJA, "漢".encode() + b"\xe6", "shared"),
        (ENKO, b"\x80", "shared"),
        (ENKO, b"\x9c\x80", "shared"),
        (ENKO, b"\x80 the", "shared"),
        (ENKO, b"\x80" + "中".encode(), "foreign"),
        (ENKO, b"\xff", "foreign"),
        (ENKO, b"\xc0\x80", "foreign"),
        (ENKO, b"\xe0\x80", "foreign"),
        (ENKO, b"\xed\xa0", "foreign"),  # surrogates
        (ENKO, b"\xf4\x90", "foreign"),  # past the last character
        (ENKO, b"\xf5", "foreign"),
        (ENKO, b"\xea\xb0A", "foreign"),
        (ENKO, b"\xea0", "foreign"),
        (ENKO, b"a\xffb", "foreign"),
    ],
)
def test_parts_of_characters_are_judged_by_what_they_can_become(
    profile: Profile, token: bytes, verdict: str
) -> None:
    assert ScriptJudge(profile)(token) == verdict


@pytest.mark.parametrize(
    ("token", "script"),
    [
        ("한글".encode(), "Hangul"),
        (b" 123 the", "Latin"),
        ("漢字".encode(), "Han"),
        ("かな".encode(), "Hiragana"),
        ("カナ".encode(), "Katakana"),
        ("дом".encode(), "Cyrillic"),
        ("ไทย".encode(), "Thai"),
        ("123 …".encode(), "Common"),
        ("😀".encode(), "Common"),
        (b"", "Common"),
        ("ꀀ".encode(), "Other"),
        (b"\xec", "Incomplete"),
        (b"\x80", "Incomplete"),
        (b"\xff", "Incomplete"),
        (b"a\xec", "Latin"),
    ],
)
def test_the_main_script_is_that_of_the_first_character_that_has_one(
    token: bytes, script: str
) -> None:
    assert main_script(token) == script


def test_hanja_are_the_4888_of_the_korean_standard() -> None:
    hanja = hanja_characters("ksx1001")
    assert len(hanja) == 4888
    assert {"韓", "國", "漢", "字"} <= hanja
    assert not {"学", "国", "们", "가"} & hanja
    assert hanja < hanja_characters("all")
    assert hanja_characters("none") == frozenset()


def test_an_unknown_choice_of_hanja_is_refused() -> None:
    with pytest.raises(KPruneError, match="expected none, ksx1001 or all"):
        hanja_characters("some")
