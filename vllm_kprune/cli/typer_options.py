"""Typer commands made from tables of options (`vllm_kprune.options`).

    def _run(sizing: Sizing, output: Output) -> None: ...
    app.command("build")(with_options(_run, Sizing, Output))

The function gets one value for each table. What it takes besides, by keyword, are Typer parameters
of its own, for what no table can say: a callback, say.
"""

import inspect
from collections.abc import Callable, Iterator
from types import GenericAlias
from typing import Annotated, Any

import typer

from vllm_kprune.options import REQUIRED, Option, check_option, options_of

__all__ = ["FORM", "flags_of", "with_options"]

FORM = "command"


def with_options(function: Callable[..., Any], *tables: type) -> Callable[..., Any]:
    """The function as Typer takes it: with a parameter for each option of each table."""
    named = {
        f"{table.__qualname__.replace('.', '_')}_{one.name}": (table, one)
        for table in tables
        for one in options_of(table, FORM)
    }
    _refuse_duplicates(one for _, one in named.values())
    own = [p for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY]
    made = [_parameter(name, one) for name, (_, one) in named.items()]

    def command(**values: Any) -> Any:
        given: dict[type, dict[str, Any]] = {table: {} for table in tables}
        for name, (table, one) in named.items():
            given[table][one.name] = _value(one, values.pop(name))
        return function(*(table(**given[table]) for table in tables), **values)

    command.__doc__ = function.__doc__
    command.__signature__ = inspect.Signature([*made, *own])  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in (*made, *own)}
    return command


def flags_of(option: Option) -> tuple[str, ...]:
    """How an option is written on the command line, short forms too."""
    name = option.name_in(FORM) or option.name
    return option.flags or (f"--{name.replace('_', '-')}",)


def _refuse_duplicates(options: Iterator[Option]) -> None:
    taken: set[str] = set()
    for one in options:
        flags = {flag for flags in flags_of(one) for flag in flags.split("/")}
        if not one.positional and taken & flags:
            raise ValueError(f"two options are called {' and '.join(sorted(taken & flags))}")
        taken |= set() if one.positional else flags


def _parameter(name: str, option: Option) -> inspect.Parameter:
    """A keyword-only parameter: these need no order, so required options may come anywhere."""
    declared: Any = Annotated[_type(option), _declaration(option)]
    default = inspect.Parameter.empty if option.default is REQUIRED else _default(option)
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=declared
    )


def _type(option: Option) -> Any:
    kind: Any = str if option.words else option.kind
    if option.many:
        kind = GenericAlias(list, (kind,))
        return kind | None
    return kind if option.default is REQUIRED or option.default is not None else kind | None


def _default(option: Option) -> Any:
    return None if option.many else option.default


def _declaration(option: Option) -> Any:
    rules: dict[str, Any] = {
        "help": option.help,
        "rich_help_panel": option.group,
        "metavar": _metavar(option),
    }
    if option.kind in (int, float) and not option.words:
        rules |= {"min": option.least, "max": option.most}
    if option.existing:
        folder = option.existing == "folder"
        rules |= {"exists": True, "file_okay": not folder, "dir_okay": folder}
    shown = option.default_text or (option.many and ", ".join(map(str, option.default)))
    rules["show_default"] = shown or option.default not in (None, False, "", ())
    if option.positional:
        return typer.Argument(**rules)
    return typer.Option(*flags_of(option), **rules)


def _metavar(option: Option) -> str | None:
    if option.metavar or not option.positional:
        return option.metavar or ("|".join(option.choices) if 0 < len(option.choices) < 7 else None)
    return option.name.upper()


def _value(option: Option, value: Any) -> Any:
    """What Typer made of the words, checked; a list that was not given is the default."""
    if option.many:
        if not value:
            return option.default
        if option.commas:
            value = ",".join(value)
    if value is option.default:
        return value
    name = option.name.upper() if option.positional else flags_of(option)[-1].split("/")[0]
    return check_option(option, value, name=name)
