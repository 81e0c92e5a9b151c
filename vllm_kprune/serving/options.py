"""The options of a server: on vLLM's command line, in its YAML files and in Python.

    vllm serve MODEL --plugin kprune --kprune-profile enko --kprune-languages ko,en
    vllm serve --config serve.yaml                           # kprune-profile: enko
    LLM(MODEL, additional_config={"kprune": {"profile": "enko"}})

Flags end up in `additional_config["kprune"]`, the one place in the engine arguments that vLLM
leaves to plugins; from there on, all three ways are the same. `serving.settings` reads them there.
"""

import argparse
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from vllm_kprune.checkpoint.head import MOST_PROFILES
from vllm_kprune.errors import KPruneError, shown
from vllm_kprune.options import (
    Option,
    add_arguments,
    given_arguments,
    listed,
    option,
    options_of,
    refuse_unknown,
)
from vllm_kprune.profile import LANGUAGE_NAMES, CorpusOptions, Sizing
from vllm_kprune.vocabulary.usage import LEAST_FLOOR

__all__ = [
    "FLAG_PREFIX",
    "FORM",
    "KEY",
    "PREFIX",
    "GuardOptions",
    "HeadChoice",
    "UsageOptions",
    "VocabularyOptions",
    "add_options",
    "flag",
    "given_options",
    "read_values",
    "server_options",
]

KEY = "kprune"
# Of our options in a request's `vllm_xargs`, and on the command line.
PREFIX = "kprune_"
FLAG_PREFIX = "--kprune-"
# The form of options (see `vllm_kprune.options`) that a server has.
FORM = "server"


@dataclass(frozen=True, kw_only=True)
class VocabularyOptions(Sizing, CorpusOptions):
    """What the pruned vocabulary is made from."""

    profile: str | None = option(
        None,
        "Prune the vocabulary for this language profile (a name such as enko, or a .yaml file). "
        "The pruned tokenizer and configuration are built once, into kprune's cache; the model "
        "answers under the name that you gave. Not needed for a folder made by `kprune build`.",
        noun="a name or a path",
        metavar="NAME|FILE",
        forms=[FORM],
    )
    head: tuple[str, ...] = option(
        (),
        "Compute logits only for the tokens of these language profiles (names such as enko, or "
        ".yaml files), and leave everything else as it is: token ids, tokenizer, embedding. All "
        "input is read as before; only these tokens can be answered. Of several, the first is for "
        f"requests that name none; one can name another: {PREFIX}head.",
        noun="names or paths",
        commas=True,
        most_items=MOST_PROFILES,
        metavar="NAME|FILE,...",
        forms=[FORM],
    )
    draft_head: str | None = option(
        None,
        "Let the drafter of speculative decoding (EAGLE, MTP, a draft model) propose only tokens "
        "of this language profile, so that its LM head is computed faster. Answers stay the same, "
        "because the model itself checks every draft.",
        noun="a name or a path",
        metavar="NAME|FILE",
        forms=[FORM],
    )
    base: Path | None = option(
        None,
        "For a folder made by `kprune build`: where the base model's weights are now, if they were "
        "moved.",
        metavar="FOLDER",
        forms=[FORM],
    )


@dataclass(frozen=True, kw_only=True)
class GuardOptions:
    """What the guard's policy does not say."""

    think_languages: tuple[str, ...] | None = option(
        (),
        "Guard what the model reasons before its answer, too, by languages of its own (ISO 639-1); "
        "off: reasoning is not guarded. Needs --reasoning-parser.",
        **LANGUAGE_NAMES,
        metavar="ko,en",
        forms=["request", FORM],
    )
    guard_fixed: bool = option(
        False,
        "Requests can neither change the guard nor switch it off: one that tries is answered with "
        "HTTP 400.",
        forms=[FORM],
    )


@dataclass(frozen=True, kw_only=True)
class UsageOptions:
    """Whether a server counts the tokens of its answers."""

    counted: bool = option(
        False,
        "Count how often each token occurs in answers, as sums over all requests; "
        "GET /kprune/usage tells the counts, and `kprune build --usage` makes a vocabulary of "
        "them. No text is kept. Needs --plugin kprune.",
        forms={FORM: "usage"},
    )
    floor: int = option(
        LEAST_FLOOR,
        "Name only tokens that occur in the answers to at least this many requests.",
        least=LEAST_FLOOR,
        metavar="N",
        forms={FORM: "usage_floor"},
    )


@dataclass(frozen=True, kw_only=True)
class HeadChoice:
    """What a request says of the LM head."""

    head: str | None = option(
        None,
        "The answer has only tokens of this profile, which is one of those that the server's LM "
        "head was started with.",
        noun="a name",
        metavar="NAME",
        default_text="the server's first",
        forms=["request"],
    )


@dataclass(frozen=True)
class _Part:
    """Options that need one of some others, and the sentence that says so."""

    options: tuple[Option, ...]
    needs: tuple[str, ...]
    reason: str
    needless: tuple[str, ...] = ()

    def dependent(self) -> Iterator[str]:
        """Names of the options that are useless without one of `needs`."""
        for one in self.options:
            name = one.name_in(FORM)
            if name is not None and name not in (*self.needs, *self.needless):
                yield name


@cache
def _parts() -> tuple[_Part, ...]:
    # Not before they are needed: plugins are registered in every process of every vLLM.
    from vllm_kprune.guard.policy import GuardPolicy
    from vllm_kprune.prompt.options import prune_options
    from vllm_kprune.serving.pruning.options import PrunerOptions

    return (
        _Part(
            options_of(VocabularyOptions, FORM),
            ("profile", "head", "draft_head"),
            "needs --kprune-profile, --kprune-head or --kprune-draft-head, because it says how to "
            "prune",
            needless=("base",),
        ),
        _Part(
            (*options_of(GuardPolicy, FORM), *options_of(GuardOptions, FORM)),
            ("languages", "scripts"),
            "needs --kprune-languages or --kprune-scripts",
            # A server may leave answers to requests, and guard the reasoning of all.
            needless=("think_languages",),
        ),
        _Part(
            (*options_of(PrunerOptions, FORM), *prune_options(FORM)),
            ("input_pruner",),
            "needs --kprune-input-pruner MODEL, or self for the served model",
        ),
        _Part(options_of(UsageOptions, FORM), ("usage",), "needs --kprune-usage"),
    )


@cache
def server_options() -> tuple[Option, ...]:
    """Every option of a server; its help names what the option needs, and its form in requests."""
    found = []
    for part in _parts():
        dependent = set(part.dependent())
        needed = f" Needs {listed(map(flag, part.needs), 'or')}."
        for one in part.options:
            # Without forms an option would have a name in every form, also in those that nobody
            # offers.
            asked = one.name_in("request") if one.forms else None
            request = f" A request can give its own: {PREFIX}{asked}." if asked else ""
            needs = needed if one.name_in(FORM) in dependent else ""
            found.append(replace(one, help=f"{one.help}{needs}{request}"))
    return tuple(found)


def flag(name: str) -> str:
    """How an option is written on the command line.

    >>> flag("guard_fixed")
    '--kprune-guard-fixed'
    """
    return FLAG_PREFIX + name.replace("_", "-")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare `--plugin` and the `--kprune-*` options, in a group of their own."""
    group = parser.add_argument_group(
        title="kprune",
        description="Serve the model with only the tokens that its languages need, answer in "
        "these languages only, and prune long prompts before they are read.",
    )
    if "--plugin" not in parser._option_string_actions:  # a later vLLM may bring its own
        group.add_argument(
            "--plugin",
            metavar="NAME",
            action="append",
            help="Also load the HTTP routes of this installed plugin (several: repeat, or commas); "
            "`kprune` adds GET /kprune, GET /kprune/usage and POST /kprune/prune. Unlike "
            "VLLM_PLUGINS it turns no other plugin off.",
        )
    # With a prefix in the parsed arguments too (`args.kprune_base`), so that none of ours can be
    # taken for one of vLLM's.
    add_arguments(group, server_options(), form=FORM, prefix=FLAG_PREFIX, dest=PREFIX)


def given_options(args: argparse.Namespace) -> dict[str, Any]:
    """The `--kprune-*` options that were given, by their names without the prefix."""
    return given_arguments(args, server_options(), form=FORM, dest=PREFIX)


def read_values(additional_config: Any) -> dict[str, Any]:
    """What `additional_config["kprune"]` gives, by name; only the names are checked.

    Raises `KPruneError` for an unknown name, and for an option without the one that it needs.
    """
    values = additional_config.get(KEY, {}) if isinstance(additional_config, Mapping) else {}
    where = f"additional_config['{KEY}']"
    if not isinstance(values, Mapping):
        raise KPruneError(f"{where}: got {shown(values)}, expected a mapping of options")
    # Before empty values are dropped: a misspelt name is a mistake whatever its value.
    refuse_unknown(values, [one.name_in(FORM) or "" for one in server_options()], where)
    given = {name: value for name, value in values.items() if not _is_nothing(value)}
    for part in _parts():
        if not any(name in given for name in part.needs):
            for name in part.dependent():
                if name in given:
                    raise KPruneError(f"{flag(name)} {part.reason}")
    # `base` needs no profile (`needless`), and does not go with one.
    if "profile" in given and "base" in given:
        raise KPruneError(
            "--kprune-base is for a folder made by `kprune build`; "
            "with --kprune-profile the model that you name is the base"
        )
    for name in ("head", "draft_head"):
        if name in given and ("profile" in given or "base" in given):
            raise KPruneError(
                f"{flag(name)} leaves the vocabulary as it is, and "
                f"{flag('profile' if 'profile' in given else 'base')} prunes it; choose one of them"
            )
    return given


def _is_nothing(value: Any) -> bool:
    """What YAML and Python write for an option that is not given; 0 is a value."""
    return value is None or value is False or value in ((), [])
