"""Which guard a request gets, from the server's options and its own; what bad options are told."""

from typing import Any

import pytest

from vllm_kprune.errors import KPruneError
from vllm_kprune.guard.policy import GuardPolicy
from vllm_kprune.serving.guard.settings import GuardSettings, Policies, request_policies
from vllm_kprune.serving.settings import resolve_settings

KOREAN = GuardSettings(default=GuardPolicy(languages=("en", "ko")))


def test_without_options_there_is_no_guard() -> None:
    assert resolve_settings({}).guard == GuardSettings()
    assert resolve_settings({"kprune": {"profile": "enko"}}).guard == GuardSettings()
    assert request_policies(GuardSettings(), None) == Policies()


def test_the_servers_options_make_the_default_guard() -> None:
    settings = resolve_settings(
        {"kprune": {"languages": "ko,en", "hanja": "ksx1001", "allow": "βα", "guard_fixed": True}}
    ).guard
    policy = GuardPolicy(languages=("en", "ko"), hanja="ksx1001", allow="αβ")
    assert settings == GuardSettings(policy, fixed=True)


def test_a_request_gets_the_default_or_what_it_asks_for() -> None:
    assert request_policies(KOREAN, None).answer == KOREAN.default
    assert request_policies(KOREAN, {"other": 1}).answer == KOREAN.default
    assert request_policies(KOREAN, {"kprune_languages": "off"}) == Policies()
    japanese = request_policies(KOREAN, {"kprune_languages": ["ja"], "other": 1}).answer
    assert japanese == GuardPolicy(languages=("ja",))
    hanja = request_policies(KOREAN, {"kprune_hanja": "all"}).answer
    assert hanja == GuardPolicy(languages=("en", "ko"), hanja="all")


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"kprune_languages": "kr"}, "unknown 'kr'; did you mean 'ko'?"),
        ({"kprune_languages": "xx"}, "known: ar, cs, de"),
        ({"kprune_scripts": "Hangl"}, "did you mean 'Hangul'"),
        (
            {"kprune_languages": ""},
            "commas between them, or a list, or off; known: ar",
        ),
        ({"kprune_languages": []}, "languages: got none, expected names"),
        ({"kprune_languages": ["ko"] * 400}, "got 400 values, expected at most 16"),
        ({"kprune_languages": "ko," * 4000}, "expected names with commas"),
        ({"kprune_languages": 3}, "expected names with commas"),
        ({"kprune_hanja": 1}, "expected none, ksx1001 or all"),
        ({"kprune_language": "ko"}, "unknown option 'kprune_language'; did you mean"),
        ({"kprune_kep": 0.5}, "did you mean 'kprune_keep'? (known: kprune_allow"),
    ],
)
def test_what_a_request_may_not_ask_names_what_it_may(asked: dict[str, Any], message: str) -> None:
    with pytest.raises(KPruneError, match=r"^vllm_xargs") as error:
        request_policies(KOREAN, asked)
    assert message in str(error.value)


@pytest.mark.parametrize("asked", ["off", "zh", "ko"])
def test_a_fixed_guard_can_be_neither_changed_nor_switched_off(asked: str) -> None:
    fixed = GuardSettings(KOREAN.default, fixed=True)
    assert request_policies(fixed, {"other": 1}).answer == KOREAN.default
    with pytest.raises(KPruneError, match="guard is fixed; leave kprune_languages out"):
        request_policies(fixed, {"kprune_languages": asked})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"languages": "kx"}, "unknown 'kx'"),
        ({"languages": ["ko", 3]}, "expected names"),
        ({"languages": "off", "guard_fixed": True}, "nothing to fix"),
        ({"scripts": "Hangul", "hanja": "some"}, "expected none, ksx1001 or all"),
    ],
)
def test_wrong_options_of_the_server_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(KPruneError, match="--kprune") as error:
        resolve_settings({"kprune": values})
    assert message in str(error.value)
