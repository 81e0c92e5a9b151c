"""What users can tell kprune in vLLM: declared once, here, for the command line, YAML and Python.

    vllm serve MODEL --plugin kprune --kprune-profile enko --kprune-languages ko,en
    vllm serve --config serve.yaml                           # kprune-profile: enko
    LLM(MODEL, additional_config={"kprune": {"profile": "enko"}})

Flags end up in `additional_config["kprune"]`, the one place of the engine arguments that vLLM
leaves to plugins; so all three ways are the same from there on.
"""

import argparse
from collections.abc import Mapping
from dataclasses import dataclass, fields
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from vllm_kprune.errors import KPruneError, nearest
from vllm_kprune.serving.option_fields import flag, option
from vllm_kprune.serving.pruning.options import PrunerOptions, check_pruner_options

__all__ = [
    "COUNTER_FOLDER",
    "GUARD_OPTIONS",
    "KEY",
    "NAMED",
    "PREFIX",
    "ServingOptions",
    "add_options",
    "given_options",
    "named_plugins",
    "read_options",
]

KEY = "kprune"
# The plugins named with --plugin, for this process and the API servers that it starts. It has no
# VLLM_ prefix because vLLM warns of, or refuses, variables with that prefix that it does not know.
NAMED = "KPRUNE_ENDPOINT_PLUGINS"
# The folder of this server's counter files, in the environment of its processes (see `counters`).
COUNTER_FOLDER = "KPRUNE_COUNTERS"
# Of our options in a request's `vllm_xargs`.
PREFIX = "kprune_"
GUARD_OPTIONS = ("languages", "scripts", "hanja", "allow")
_PLUGIN_GROUPS = ("vllm.general_plugins", "vllm.endpoint_plugins")


@dataclass(frozen=True)
class _VocabularyOptions:
    """What the pruned vocabulary is made from."""

    profile: str | None = option(
        None,
        "NAME|FILE",
        "Prune the vocabulary for this language profile (a name such as enko, or a .yaml file). "
        "The pruned tokenizer and configuration are built once, into kprune's cache; the model "
        "answers under the name you gave. Not needed for a folder made by `kprune build`.",
    )
    corpus: tuple[str, ...] = option(
        (),
        "FILE",
        "With --kprune-profile: texts whose tokens must stay cheap, besides the profile's own "
        "evidence (.txt, .jsonl, .zst).",
        nargs="+",
        action="extend",
    )
    target_size: int | None = option(
        None,
        "N",
        "With --kprune-profile: keep exactly N tokens instead of the profile's own sizing.",
        type=int,
    )
    coverage: float | None = option(
        None,
        "SHARE",
        "With --kprune-profile: keep tokens until this share of the evidence is covered (0.999), "
        "instead of the profile's own sizing.",
        type=float,
    )
    max_extra_tokens: float | None = option(
        None,
        "SHARE",
        "With --kprune-profile: keep as few tokens as cost at most this share of extra tokens "
        "(0.01) on each source of evidence and each --kprune-corpus, instead of the profile's own "
        "sizing. Measured when the overlay is built, which takes some seconds more.",
        type=float,
    )
    base: str | None = option(
        None,
        "FOLDER",
        "For a folder made by `kprune build`: where the base model's weights are now, when they "
        "were moved since.",
    )


@dataclass(frozen=True)
class _GuardOptions:
    """How answers are guarded."""

    languages: str | tuple[str, ...] | None = option(
        None,
        "ko,en",
        "Guard every answer: no character outside the scripts of these languages (ISO 639-1) is "
        "ever produced, on any model, pruned or not. A request chooses its own with "
        'vllm_xargs={"kprune_languages": "ko,en"}, or "off".',
    )
    scripts: str | tuple[str, ...] | None = option(
        None,
        "Hangul,Latin",
        "Guard every answer by Unicode scripts, instead of or besides --kprune-languages.",
    )
    hanja: str | None = option(
        None,
        "none|ksx1001|all",
        "Han characters that the guard lets pass besides: none, the 4,888 of KS X 1001, or all. "
        "Needs --kprune-languages or --kprune-scripts, as --kprune-allow and --kprune-guard-fixed "
        "do.",
    )
    allow: str | None = option(
        None,
        "CHARACTERS",
        "Characters that the guard lets pass whatever their script is, such as αβπ.",
    )
    guard_fixed: bool = option(
        False,
        None,
        "Requests can neither change the guard nor switch it off: one that tries is answered "
        "with HTTP 400.",
        action="store_const",
        const=True,
    )


@dataclass(frozen=True)
class ServingOptions(PrunerOptions, _GuardOptions, _VocabularyOptions):
    """The `--kprune-*` options; a field is an option: name, default and help together.

    Fields come in the order of `--help`: those of the last base first.
    """

    @property
    def given(self) -> bool:
        """True if the user set any of them."""
        return self != ServingOptions()

    @property
    def prunes(self) -> bool:
        """True if any of them is about the vocabulary, rather than about prompts or answers."""
        return any(getattr(self, f.name) != f.default for f in fields(_VocabularyOptions))

    @property
    def guard(self) -> dict[str, Any]:
        """What the server's default guard is made of, by the names of a request's options."""
        values = {name: getattr(self, name) for name in GUARD_OPTIONS}
        return {name: value for name, value in values.items() if value is not None}


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
            "`kprune` adds GET /kprune and POST /kprune/prune. Unlike VLLM_PLUGINS it turns no "
            "other plugin off.",
        )
    for field in fields(ServingOptions):
        group.add_argument(flag(field.name), dest=f"kprune_{field.name}", **field.metadata)


def given_options(args: argparse.Namespace) -> dict[str, Any]:
    """The `--kprune-*` options that were given, by field name."""
    values = {f.name: getattr(args, f"kprune_{f.name}", None) for f in fields(ServingOptions)}
    return {name: value for name, value in values.items() if value is not None}


def named_plugins(args: argparse.Namespace) -> tuple[str, ...]:
    """The plugins named with `--plugin`; `KPruneError` for one that is not installed."""
    given = getattr(args, "plugin", None) or []
    names = tuple(name.strip() for item in given for name in item.split(","))
    installed = {point.name for group in _PLUGIN_GROUPS for point in entry_points(group=group)}
    for name in names:
        if name not in installed:
            raise KPruneError(f"--plugin: no vLLM plugin '{name}'; {nearest(name, installed)}")
    return names


def read_options(additional_config: Any) -> ServingOptions:
    """The options in `additional_config["kprune"]`, checked; none given if there are none."""
    values = additional_config.get(KEY, {}) if isinstance(additional_config, Mapping) else {}
    if not isinstance(values, Mapping):
        raise KPruneError(f"additional_config['{KEY}']: expected a mapping, got {values!r}")
    known = {field.name for field in fields(ServingOptions)}
    for name in values:
        if name not in known:
            raise KPruneError(
                f"additional_config['{KEY}']: unknown key {name!r}; {nearest(str(name), known)}"
            )
    lists = {name: _texts(values.get(name, ())) for name in ("corpus", "force_tokens")}
    return _checked(ServingOptions(**{**values, **lists}))


def _checked(options: ServingOptions) -> ServingOptions:
    for name in ("profile", "base"):
        value = getattr(options, name)
        if value is not None and not (isinstance(value, str) and value):
            raise KPruneError(f"{flag(name)}: expected a name or a path, got {value!r}")
    size = options.target_size
    if size is not None and (not isinstance(size, int) or isinstance(size, bool) or size < 1):
        raise KPruneError(f"{flag('target_size')}: expected a number of tokens, got {size!r}")
    for name in ("coverage", "max_extra_tokens"):
        share = getattr(options, name)
        if share is not None and (not isinstance(share, float | int) or not 0 <= share <= 1):
            raise KPruneError(f"{flag(name)}: expected a share from 0 to 1, got {share!r}")
    if options.profile is None:
        for name in ("corpus", "target_size", "coverage", "max_extra_tokens"):
            if getattr(options, name) not in (None, ()):
                raise KPruneError(f"{flag(name)} needs --kprune-profile: it says how to prune")
    elif options.base is not None:
        raise KPruneError(
            "--kprune-base is for a folder made by `kprune build`; "
            "with --kprune-profile the model that you name is the base"
        )
    _check_guard(options)
    check_pruner_options(options)
    return options


def _check_guard(options: ServingOptions) -> None:
    """The values of the guard's options are checked where they become a policy."""
    if not isinstance(options.guard_fixed, bool):
        raise KPruneError(
            f"{flag('guard_fixed')}: expected true or false, got {options.guard_fixed!r}"
        )
    if options.languages is None and options.scripts is None:
        for name in ("hanja", "allow", "guard_fixed"):
            if getattr(options, name):
                raise KPruneError(f"{flag(name)} needs --kprune-languages or --kprune-scripts")


def _texts(value: Any) -> tuple[str, ...]:
    items = (value,) if isinstance(value, str | Path) else value or ()
    if not isinstance(items, list | tuple):
        raise KPruneError(f"additional_config['{KEY}']: expected texts, got {value!r}")
    return tuple(str(item) for item in items)
