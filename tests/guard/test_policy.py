"""Options of a request: equal options give equal policies, mistakes a helpful error."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.guard_oracle import SETTINGS

from vllm_kprune.errors import KPruneError
from vllm_kprune.guard.policy import SCRIPTS, GuardPolicy, parse_policy
from vllm_kprune.options import options_of
from vllm_kprune.profile import LANGUAGES

OPTIONS = {one.name for one in options_of(GuardPolicy, "request")}
DEFAULT = GuardPolicy(languages=("en", "ko"), hanja="all", allow="α", digits=False)


@pytest.mark.parametrize(
    "options",
    [
        {"languages": "ko,en"},
        {"languages": " en , KO,en,"},
        {"languages": ["ko", "en"]},
        {"languages": ("en", "ko", "ko"), "hanja": "none", "allow": "", "emoji": True},
        {"languages": "ko,en", "digits": 1, "punctuation": "true", "emoji": " True "},
    ],
)
def test_equal_requests_are_equal_policies(options: dict[str, object]) -> None:
    policy = parse_policy(options)
    assert policy == GuardPolicy(languages=("en", "ko"))
    assert hash(policy) == hash(GuardPolicy(languages=("en", "ko")))


def test_every_option_is_a_field_and_reaches_it() -> None:
    policy = parse_policy(
        {
            "languages": "ja",
            "scripts": ["greek", "HAN"],
            "hanja": "ksx1001",
            "allow": "βαα",
            "digits": False,
            "punctuation": 0,
            "emoji": "false",
            "escapes": "json",
            "latin": "all",
        }
    )
    assert policy == GuardPolicy(
        ("ja",), ("Greek", "Han"), "ksx1001", "αβ", False, False, False, "json", "all"
    )
    assert set(vars(policy)) == OPTIONS


def test_nothing_given_is_the_default() -> None:
    assert parse_policy({}) is None
    assert parse_policy({}, DEFAULT) is DEFAULT


def test_what_is_not_given_is_the_defaults() -> None:
    assert parse_policy({"digits": True}, DEFAULT) == GuardPolicy(("en", "ko"), (), "all", "α")


def test_languages_or_scripts_replace_both_of_the_defaults() -> None:
    assert parse_policy({"scripts": "Hangul"}, DEFAULT) == GuardPolicy(
        (), ("Hangul",), "all", "α", False
    )
    assert parse_policy({"languages": "ja"}, GuardPolicy(scripts=("Greek",))) == GuardPolicy(
        ("ja",)
    )


@pytest.mark.parametrize("word", ["off", " OFF "])
def test_off_is_no_guard(word: str) -> None:
    assert parse_policy({"languages": word}, DEFAULT) is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"languages": "off", "digits": True}, "leave the other options"),
        ({"languages": "kr"}, r"unknown 'kr'; did you mean 'ko'\?.*known: ar, cs"),
        ({"languages": "ko,korean"}, "unknown 'korean'; .*known: ar, cs"),
        ({"scripts": "Hangeul"}, "did you mean 'Hangul'"),
        ({"scripts": "Klingon"}, "known: Adlam, Arabic"),
        ({"languages": ""}, "languages: got none, expected names .*; known: ar, cs"),
        ({"languages": " , "}, "languages: got none, expected names"),
        ({"scripts": []}, "scripts: got none, expected names"),
        ({"languages": "", "scripts": "Hangul"}, "languages: got none, expected names"),
        ({"languages": ["ko"] * 17}, "got 17 values, expected at most 16"),
        ({"languages": "ko," * 16 + "en"}, "got 17 values"),
        ({"languages": "k" * 5000}, "expected names"),
        ({"languages": ["k" * 5000]}, "unknown 'kkk"),
        ({"languages": 5}, "got 5, expected names"),
        ({"languages": None}, "got None"),
        ({"languages": True}, "got True"),
        ({"languages": ["ko", 1]}, "expected names"),
        ({"languages": [["ko"]]}, "expected names"),
        ({"languages": {"ko": 1}}, "expected names"),
        ({"languages": b"ko"}, "expected names"),
        ({"languages": ["off"]}, "unknown 'off'"),
        ({"languages": "ko", "hanja": "some"}, "expected none, ksx1001 or all"),
        ({"languages": "ko", "hanja": ["all"]}, "expected none, ksx1001 or all"),
        ({"languages": "ko", "allow": 3}, "expected a text"),
        ({"languages": "ko", "allow": "\ud800"}, "surrogate"),
        ({"languages": "ko", "allow": "a" * 257}, "expected a text of 0 to 256 characters"),
        ({"languages": "ko", "digits": "maybe"}, "expected true or false"),
        ({"languages": "ko", "digits": 2}, "expected true or false"),
        ({"languages": "ko", "digits": 1.0}, "expected true or false"),
        ({"languages": "ko", "emoji": None}, "expected true or false"),
        ({"language": "ko"}, "unknown option 'language'; did you mean 'languages'"),
        ({3: "ko"}, "unknown option 3"),
        ({"x" * 5000: "ko"}, "unknown option 'xxx"),
        ({"hanja": "all"}, "no default: give languages"),
    ],
)
def test_mistakes_are_named(options: dict[Any, object], message: str) -> None:
    with pytest.raises(KPruneError, match=message) as caught:
        parse_policy(options)
    assert len(str(caught.value)) < 1_200
    assert "\n" not in str(caught.value)


VALUES = st.recursive(
    st.none() | st.integers() | st.floats() | st.sampled_from(["ko", "off", "", "가", "all"]),
    lambda inner: st.lists(inner, max_size=20) | st.dictionaries(st.just("ko"), inner),
    max_leaves=5,
)


@SETTINGS
@given(options=st.dictionaries(st.sampled_from(sorted(OPTIONS)) | st.text(max_size=12), VALUES))
def test_no_value_does_worse_than_an_error(options: dict[str, object]) -> None:
    try:
        policy = parse_policy(options, DEFAULT)
    except KPruneError:
        return
    assert policy is None or set(policy.languages) <= set(LANGUAGES)
    assert policy is None or set(policy.scripts) <= set(SCRIPTS)


def test_labels_name_languages_scripts_and_hanja() -> None:
    assert GuardPolicy(("en", "ko")).label == "en+ko"
    assert GuardPolicy(("ko",), ("Greek",), "ksx1001").label == "ko+Greek+hanja"
