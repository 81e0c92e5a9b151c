"""The options: on vLLM's own command line, in its YAML, in Python, and in the files we ship."""

import argparse
from pathlib import Path
from typing import Any

import pytest

from vllm_kprune.errors import KPruneError
from vllm_kprune.guard.policy import GuardPolicy
from vllm_kprune.profile import shipped_profiles
from vllm_kprune.prompt.scorers import DEFAULT_SCORER, SCORERS
from vllm_kprune.serving.command import named_plugins
from vllm_kprune.serving.options import (
    VocabularyOptions,
    given_options,
    read_values,
    server_options,
)
from vllm_kprune.serving.settings import ServerSettings, resolve_settings

CONFIGS = Path(__file__).parents[2] / "configs" / "serve"


@pytest.fixture(scope="module")
def parser(vllm_ready: None) -> Any:
    """The parser of `vllm serve`, as vLLM makes it."""
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    return make_arg_parser(FlexibleArgumentParser())


def parse(parser: Any, *words: str) -> argparse.Namespace:
    return parser.parse_args(["serve", "MODEL", *words][1:])


def settings_of(args: argparse.Namespace) -> ServerSettings:
    return resolve_settings({"kprune": given_options(args)})


def test_flags_become_options(parser: Any) -> None:
    args = parse(
        parser, "--plugin", "kprune", "--kprune-profile", "enko", "--kprune-target-size", "9000",
        "--kprune-corpus", "a.txt", "b.txt", "--kprune-corpus", "c.txt",
    )  # fmt: skip
    assert named_plugins(args) == ("kprune",)
    corpus = (Path("a.txt"), Path("b.txt"), Path("c.txt"))
    assert settings_of(args) == ServerSettings(
        VocabularyOptions(profile="enko", corpus=corpus, target_size=9000), given=True
    )


@pytest.mark.parametrize("ours", [["enko"], "enko", 7, True])
def test_options_beside_a_flag_must_be_a_mapping(ours: Any, parser: Any) -> None:
    from vllm_kprune.serving.command import _settle

    args = parse(parser, "--kprune-profile", "enko")
    args.additional_config = {"kprune": ours}
    with pytest.raises(KPruneError, match="expected options by their names"):
        _settle(args)


@pytest.mark.parametrize("name", ["coverage", "max_extra_tokens"])
def test_a_size_can_be_given_as_a_share(name: str, parser: Any) -> None:
    flag = f"--kprune-{name.replace('_', '-')}"
    args = parse(parser, "--kprune-profile", "enko", flag, "0.02")
    assert settings_of(args).vocabulary == VocabularyOptions(profile="enko", **{name: 0.02})


def test_the_flags_of_the_guard_become_its_options(parser: Any) -> None:
    args = parse(
        parser, "--kprune-languages", "ko,en", "--kprune-hanja", "ksx1001", "--kprune-allow", "αβ",
        "--kprune-guard-fixed",
    )  # fmt: skip
    assert given_options(args) == {
        "languages": "ko,en", "hanja": "ksx1001", "allow": "αβ", "guard_fixed": True,
    }  # fmt: skip
    settings = settings_of(args)
    assert settings.guard.default == GuardPolicy(("en", "ko"), hanja="ksx1001", allow="αβ")
    assert settings.guard.fixed
    assert settings.given
    assert not settings.prunes


def test_the_flags_of_the_input_pruner_become_its_options(parser: Any) -> None:
    args = parse(
        parser, "--kprune-input-pruner", "self", "--kprune-keep", "0.8", "--kprune-force-digits",
        "--kprune-force-tokens", "?", "!", "--kprune-min-tokens", "auto", "--kprune-pruner-cache",
        "8", "--kprune-pruner-threads", "2", "--kprune-prune-roles", "user",
    )  # fmt: skip
    assert given_options(args) == {
        "input_pruner": "self", "keep": "0.8", "force_digits": True, "force_tokens": ["?", "!"],
        "min_tokens": "auto", "pruner_cache": 8.0, "pruner_threads": 2, "prune_roles": "user",
    }  # fmt: skip
    settings = settings_of(args)
    assert settings.pruner
    assert (settings.pruner.ranker, settings.pruner.threads) == ("self", 2)
    assert settings.given
    assert not settings.prunes


def test_nothing_is_given_when_no_flag_is(parser: Any) -> None:
    args = parse(parser)
    assert given_options(args) == {}
    assert named_plugins(args) == ()


def test_the_help_has_a_group_that_explains_every_option(parser: Any) -> None:
    group = next(g for g in parser._action_groups if g.title == "kprune")
    flags = {flag for action in group._group_actions for flag in action.option_strings}
    assert flags == {
        "--plugin", "--kprune-profile", "--kprune-head", "--kprune-corpus", "--kprune-base",
        "--kprune-draft-head",
        "--kprune-target-size",
        "--kprune-coverage", "--kprune-max-extra-tokens",
        "--kprune-languages", "--kprune-scripts", "--kprune-hanja", "--kprune-allow",
        "--kprune-escapes", "--kprune-latin",
        "--kprune-guard-fixed", "--kprune-think-languages",
        "--kprune-input-pruner", "--kprune-keep", "--kprune-scorer", "--kprune-unit",
        "--kprune-prune-layout",
        "--kprune-min-tokens", "--kprune-force-tokens", "--kprune-force-digits",
        "--kprune-prune-roles", "--kprune-pruner-cache", "--kprune-pruner-threads",
        "--kprune-pruner-strict", "--kprune-pruner-window", "--kprune-pruner-precision",
        "--kprune-pruner-fixed", "--kprune-pruner-seconds",
        "--kprune-usage", "--kprune-usage-floor", "--kprune-usage-file",
    }  # fmt: skip
    assert all(len(action.help) > 40 for action in group._group_actions)


def test_several_plugins_can_be_named(parser: Any) -> None:
    args = parse(parser, "--plugin", "kprune,kprune", "--plugin", "kprune")
    assert named_plugins(args) == ("kprune", "kprune", "kprune")


def test_a_plugin_that_is_not_installed_is_named_with_the_nearest(parser: Any) -> None:
    with pytest.raises(KPruneError, match="no vLLM plugin 'kprun'; did you mean 'kprune'"):
        named_plugins(parse(parser, "--plugin", "kprun"))


def test_yaml_configurations_take_the_options(parser: Any, tmp_path: Path) -> None:
    config = tmp_path / "serve.yaml"
    config.write_text(
        "plugin: kprune\nkprune-profile: enko\nkprune-corpus: [a.txt, b.txt]\n"
        "kprune-languages: ko,en\nkprune-guard-fixed: true\n"
    )
    args = parser.parse_args(["--config", str(config)])
    assert given_options(args) == {
        "profile": "enko", "corpus": ["a.txt", "b.txt"], "languages": "ko,en", "guard_fixed": True,
    }  # fmt: skip


@pytest.mark.parametrize("config", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.name)
def test_every_configuration_we_ship_is_valid(parser: Any, config: Path) -> None:
    args = parser.parse_args(["--config", str(config)])
    assert named_plugins(args) == ("kprune",)
    assert settings_of(args).vocabulary.profile in {None, *shipped_profiles()}


def test_options_can_be_given_in_python() -> None:
    settings = resolve_settings({"kprune": {"profile": "enko", "corpus": "a.txt"}, "other": 1})
    assert settings.vocabulary == VocabularyOptions(profile="enko", corpus=(Path("a.txt"),))
    assert not resolve_settings({}).given
    assert not resolve_settings({"other": 1}).given
    nothing = {"profile": None, "corpus": [], "guard_fixed": False}
    assert resolve_settings({"kprune": nothing}) == ServerSettings()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ("enko", "got 'enko', expected a mapping"),
        ({"profil": "enko"}, "unknown option 'profil'; did you mean 'profile'"),
        ({"profile": ""}, "--kprune-profile: got '', expected a name or a path"),
        ({"profile": 3}, "--kprune-profile: got 3, expected a name or a path"),
        ({"profile": "enko", "target_size": 0}, "--kprune-target-size: got 0, expected a number"),
        ({"profile": "enko", "target_size": True}, "--kprune-target-size: got True, expected a "),
        ({"profile": "enko", "target_size": "9"}, "--kprune-target-size: got '9', expected a "),
        ({"target_size": 9000}, "--kprune-target-size needs --kprune-profile"),
        ({"profile": "enko", "coverage": 1.1}, "expected a share, above 0 and at most 1"),
        ({"profile": "enko", "coverage": "0.9"}, "--kprune-coverage: got '0.9', expected a"),
        ({"profile": "enko", "max_extra_tokens": -1}, "-max-extra-tokens: got -1, expected a"),
        ({"profile": "enko", "max_extra_tokens": float("nan")}, "expected a share from 0 to 1"),
        ({"coverage": 0.9}, "--kprune-coverage needs --kprune-profile"),
        ({"max_extra_tokens": 0.0}, "--kprune-max-extra-tokens needs --kprune-profile"),
        ({"corpus": ["a.txt"]}, "--kprune-corpus needs --kprune-profile"),
        ({"profile": "enko", "base": "/models"}, "--kprune-base is for a folder made by"),
        ({"hanja": "all"}, "--kprune-hanja needs --kprune-languages or --kprune-scripts"),
        ({"allow": "α"}, "--kprune-allow needs --kprune-languages or --kprune-scripts"),
        ({"guard_fixed": True}, "--kprune-guard-fixed needs --kprune-languages"),
        ({"keep": 0.8}, "--kprune-keep needs --kprune-input-pruner MODEL, or self"),
        ({"pruner_window": 512}, "--kprune-pruner-window needs --kprune-input-pruner"),
        ({"input_pruner": ""}, "--kprune-input-pruner: got '', expected a model or self"),
        (
            {"input_pruner": "self", "pruner_cache": -1},
            "--kprune-pruner-cache: got -1, expected MiB",
        ),
        (
            {"input_pruner": "self", "pruner_cache": True},
            "--kprune-pruner-cache: got True, expected",
        ),
        ({"input_pruner": "self", "pruner_threads": 0}, "--kprune-pruner-threads: got 0, expected"),
        (
            {"input_pruner": "self", "pruner_window": 1.5},
            "--kprune-pruner-window: got 1.5, expected",
        ),
        (
            {"input_pruner": "self", "pruner_precision": "bf16"},
            "--kprune-pruner-precision: got 'bf16', expected float32 or int8",
        ),
        ({"input_pruner": "self", "pruner_strict": 1}, "--kprune-pruner-strict: got 1, expected"),
        ({"languages": "ko", "guard_fixed": "yes"}, "fixed: got 'yes', expected true or false"),
    ],
)
def test_wrong_options_are_refused_with_the_reason(values: Any, message: str) -> None:
    with pytest.raises(KPruneError) as error:
        resolve_settings({"kprune": values})
    assert message in str(error.value)


def test_the_help_of_the_scorer_names_every_one_and_the_default() -> None:
    (scorer,) = (one for one in server_options() if one.name == "scorer")
    assert all(name in scorer.help for name in SCORERS)
    assert f"{DEFAULT_SCORER} (the default" in scorer.help


def test_no_help_speaks_of_the_next_option() -> None:
    """vLLM sorts options by name."""
    assert not [one.name for one in server_options() if " next " in one.help]


@pytest.mark.parametrize("other", ["profile", "base"])
def test_a_pruned_head_does_not_go_with_a_pruned_vocabulary(other: str) -> None:
    values = {"kprune": {"head": "enko", other: "x"}}
    with pytest.raises(KPruneError, match="--kprune-head leaves the vocabulary as it is"):
        read_values(values)


def test_a_size_needs_a_profile_or_a_head() -> None:
    assert read_values({"kprune": {"head": "enko", "target_size": 9}})["target_size"] == 9
    needs = "needs --kprune-profile, --kprune-head or --kprune-draft-head"
    with pytest.raises(KPruneError, match=needs):
        read_values({"kprune": {"target_size": 9}})
