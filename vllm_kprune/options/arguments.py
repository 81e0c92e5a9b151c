"""Options as arguments of a command line that argparse reads, such as vLLM's."""

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from vllm_kprune.options.declare import FEW, Option, shown_default, spelled

__all__ = ["add_arguments", "given_arguments"]


def add_arguments(
    parser: Any, options: Iterable[Option], *, form: str, prefix: str, dest: str
) -> None:
    """Add the options to an argparse parser or group: `--{prefix}…`, kept under `{dest}…`.

    What was not given has no default there, so that `given_arguments` tells it apart.
    """
    for one in options:
        name = one.name_in(form)
        if name is not None:
            how = _argparse_rules(one)
            parser.add_argument(
                spelled(prefix, name),
                dest=dest + name,
                default=argparse.SUPPRESS,
                # argparse fills in `%(prog)s` and the like, so a plain "95 %" would be an error.
                help=_full_help(one).replace("%", "%%"),
                **how,
            )


def _argparse_rules(option: Option) -> dict[str, Any]:
    if option.kind is bool:
        return {"action": "store_const", "const": True}
    rules: dict[str, Any] = {"metavar": option.metavar or _metavar(option)}
    if option.many and not option.commas:
        rules |= {"nargs": "+", "action": "extend"}
    # With words ("off", "auto") argparse must let the text through; `check_option` reads it.
    if option.kind in (int, float) and not (option.words or option.server_words):
        rules["type"] = option.kind
    return rules


def _full_help(option: Option) -> str:
    default = option.default_text or shown_default(option)
    return f"{option.help} Default: {default}." if default else option.help


def _metavar(option: Option) -> str:
    if option.choices and len(option.choices) <= FEW and not option.many:
        return "|".join(option.choices)
    return {int: "N", float: "NUMBER", Path: "PATH"}.get(option.kind, "TEXT")


def given_arguments(
    args: argparse.Namespace, options: Iterable[Option], *, form: str, dest: str
) -> dict[str, Any]:
    """The options that were given on a command line, by their names in the form; not checked."""
    names = [name for one in options if (name := one.name_in(form)) is not None]
    values = {name: getattr(args, dest + name, None) for name in names}
    return {name: value for name, value in values.items() if value is not None}
