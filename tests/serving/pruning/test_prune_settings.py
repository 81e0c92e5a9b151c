"""The pruner's settings, and what a request may make of them."""

from typing import Any

import pytest

from vllm_kprune.errors import KPruneError
from vllm_kprune.prompt.budget import PruneOptions
from vllm_kprune.prompt.options import PruneRequest
from vllm_kprune.serving.pruning.settings import RequestOptions, request_options
from vllm_kprune.serving.settings import resolve_settings


def settings_of(**values: Any) -> Any:
    return resolve_settings({"kprune": {"input_pruner": "self", **values}}).pruner


def test_without_a_pruner_there_are_no_settings() -> None:
    assert resolve_settings({}).pruner is None
    assert resolve_settings({"kprune": {"languages": "ko"}}).pruner is None


def test_the_defaults_prune_nothing_until_a_request_asks() -> None:
    settings = settings_of()
    assert settings.default == PruneRequest()
    assert settings.default.options.does_nothing
    assert settings.min_tokens is None
    assert settings.cache_bytes == 64 << 20
    assert 1 <= settings.threads <= 4


def test_the_servers_options_are_the_defaults_of_requests() -> None:
    settings = settings_of(
        keep="0.8", scorer="random", unit="word", min_tokens="300", force_tokens=("?", "!"),
        force_digits=True, prune_roles="user,tool", pruner_cache=0.5, pruner_threads=3,
        pruner_strict=True, pruner_window=512, pruner_precision="int8",
    )  # fmt: skip
    options = PruneOptions(
        keep=0.8, scorer="random", unit="word", force_tokens=("?", "!"), force_digits=True
    )
    assert settings.default == PruneRequest(options, ("user", "tool"), strict=True)
    assert (settings.min_tokens, settings.threads) == (300, 3)
    assert (settings.window, settings.precision) == (512, "int8")
    assert settings.cache_bytes == 1 << 19
    assert settings_of(min_tokens=0).min_tokens == 0
    assert settings_of(min_tokens="auto", keep="off").min_tokens is None


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"keep": "1.5"},
            "keep: got '1.5', expected a share of the tokens, above 0 and at most 1, or off",
        ),
        ({"keep": 0}, "keep: got 0"),
        (
            {"scorer": "best"},
            "scorer: got 'best', expected sentences, rarity, question, attention or random",
        ),
        ({"unit": "byte"}, "unit: got 'byte', expected token or word"),
        (
            {"min_tokens": "often"},
            "min-tokens: got 'often', expected a number of tokens from 0 to 10,000,000, or auto",
        ),
        ({"min_tokens": -1}, "min-tokens: got -1"),
        ({"prune_roles": "user,god"}, "prune-roles: got 'god', expected user, assistant"),
        ({"force_tokens": ("x" * 99,)}, "force-tokens: got 'xxx"),
    ],
)
def test_wrong_options_of_the_server_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(KPruneError, match=r"^--kprune-") as error:
        settings_of(**values)
    assert message in str(error.value)


def test_a_request_changes_what_it_names() -> None:
    settings = settings_of(keep=0.8, force_digits=True)
    assert request_options(settings, None) == RequestOptions(settings.default)
    assert request_options(settings, {"other": 1}) == RequestOptions(settings.default)
    asked = request_options(
        settings,
        {
            "kprune_keep": 0.6,
            "kprune_min_tokens": 5,
            "kprune_prune_roles": "tool",
            "kprune_force_digits": 0,
            "kprune_marks": "off",
            "kprune_languages": "ko",  # the guard's
        },
    )
    request = PruneRequest(PruneOptions(keep=0.6), roles=("tool",), marks=False)
    assert asked == RequestOptions(request, min_tokens=5)
    off = request_options(settings, {"kprune_keep": "off"})
    assert off.off
    assert off.request.options.does_nothing


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"kprune_kep": 0.5}, "unknown option 'kprune_kep'; did you mean 'kprune_keep'?"),
        ({"kprune_kep": 0.5}, "kprune_languages"),  # the guard's names are told too
        ({"kprune_roles": "user"}, "did you mean 'kprune_prune_roles'?"),
        ({"kprune_keep": "much"}, "keep: got 'much', expected a share of the tokens"),
        ({"kprune_keep": [0.5]}, "keep: got [0.5]"),
        ({"kprune_keep": 0.5, "kprune_target_tokens": 9}, "give one of them"),
        ({"kprune_min_tokens": "auto"}, "min_tokens: got 'auto', expected a number"),
        (
            {"kprune_scorer": "x" * 10_000},
            "expected sentences, rarity, question, attention or random",
        ),
        ({"kprune_marks": "maybe"}, "marks: got 'maybe', expected true or false"),
        ({"kprune_" + "x" * 10_000: 1}, "unknown option 'kprune_xxx"),
    ],
)
def test_bad_options_name_what_is_allowed(asked: dict[str, Any], message: str) -> None:
    with pytest.raises(KPruneError, match=r"^vllm_xargs") as error:
        request_options(settings_of(), asked)
    assert message in str(error.value)
    assert len(str(error.value)) < 800


@pytest.mark.parametrize("asked", ["kprune_keep", "kprune_scorer", "kprune_min_tokens"])
def test_without_a_pruner_a_request_is_told_the_option_that_is_missing(asked: str) -> None:
    with pytest.raises(KPruneError, match=f"{asked}: this server has no input pruner"):
        request_options(None, {asked: 1})


def test_without_a_pruner_what_needs_none_is_accepted() -> None:
    assert request_options(None, {"kprune_keep": "off"}).off
    assert request_options(None, {"kprune_marks": "off"}) == RequestOptions(
        PruneRequest(marks=False), off=True
    )
    assert request_options(None, {"kprune_languages": "ko"}).off
