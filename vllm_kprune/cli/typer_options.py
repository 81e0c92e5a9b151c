"""Typer commands made from tables of options (`vllm_kprune.options`).

    def _run(sizing: Sizing, output: Output) -> None: ...
    app.command("build")(with_options(_run, Sizing, Output))

The function gets one value for each table; of `Given(table)`, a dict with only the options that
were given. Its keyword-only parameters are Typer's own, for what no table can say, such as a
callback.
"""

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from types import GenericAlias
from typing import Annotated, Any

import typer

from vllm_kprune.options import REQUIRED, Option, check_option, options_of, shown_default

__all__ = ["FORM", "Given", "flags_of", "with_options"]

FORM = "command"
# Types that are made at run time; mypy would read these expressions as types of ours.
_LIST: Any = GenericAlias
_ANNOTATED: Any = Annotated


@dataclass(frozen=True)
class Given:
    """A table of which the function gets only the options that were given, in a dict."""

    table: type

    @property
    def options(self) -> tuple[Option, ...]:
        """The options of the table, without a default."""
        return tuple(
            replace(one, default=None, default_text=one.default_text or shown_default(one))
            for one in options_of(self.table, FORM)
        )

    def __call__(self, **values: Any) -> dict[str, Any]:
        return {name: value for name, value in values.items() if value is not None}


def with_options(function: Callable[..., Any], *tables: type | Given) -> Callable[..., Any]:
    """The function as Typer takes it: with a parameter for each option of each table."""
    options = [t.options if isinstance(t, Given) else options_of(t, FORM) for t in tables]
    named = {
        # Numbered: two tables may have fields of one name, as long as their flags differ.
        f"table{number}_{one.name}": (number, one)
        for number, ones in enumerate(options)
        for one in ones
    }
    _refuse_duplicates(one for _, one in named.values())
    own = [p for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY]
    made = [_parameter(name, one) for name, (_, one) in named.items()]

    def command(**values: Any) -> Any:
        given: list[dict[str, Any]] = [{} for _ in tables]
        for name, (number, one) in named.items():
            given[number][one.name] = _value(one, values.pop(name))
        made_of = zip(tables, given, strict=True)
        # What is left in `values` belongs to the function's own keyword-only parameters.
        return function(*(table(**values) for table, values in made_of), **values)

    command.options = tuple(one for _, one in named.values())  # type: ignore[attr-defined]
    command.__doc__ = function.__doc__
    command.__signature__ = inspect.Signature([*made, *own])  # type: ignore[attr-defined]
    # Typer reads parameters from the signature, but their types from the annotations.
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
    declared = _ANNOTATED[_type(option), _declaration(option)]
    default = inspect.Parameter.empty if option.default is REQUIRED else _default(option)
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=declared
    )


def _type(option: Option) -> Any:
    kind: Any = str if option.words else option.kind
    if option.many:
        return _LIST(list, (kind,)) | None
    return kind if option.default is REQUIRED or option.default is not None else kind | None


def _default(option: Option) -> Any:
    return None if option.many else option.default


def _declaration(option: Option) -> Any:
    rules: dict[str, Any] = {
        "help": option.help,
        "rich_help_panel": option.group,
        "metavar": _metavar(option),
    }
    if option.existing:
        folder = option.existing == "folder"
        rules |= {"exists": True, "file_okay": not folder, "dir_okay": folder}
    rules["show_default"] = (
        option.default_text
        or (option.many and shown_default(option))
        or (option.default not in (None, False, "", ()))
    )
    if option.positional:
        return typer.Argument(**rules)
    return typer.Option(*flags_of(option), **rules)


def _metavar(option: Option) -> str | None:
    """With the range of a number. It is `check_option` that refuses others, in one line."""
    shown = _plain_metavar(option)
    if option.kind not in (int, float) or option.words:
        return shown
    lower = f"{option.least:g}<=" if option.least is not None else ""
    lower = f"{option.above:g}<" if option.above is not None else lower
    upper = f"<={option.most:g}" if option.most is not None else ""
    return f"{shown or f'<{option.kind.__name__}>'} [{lower}x{upper}]" if lower + upper else shown


def _plain_metavar(option: Option) -> str | None:
    if option.metavar or not option.positional:
        return option.metavar or ("|".join(option.choices) if 0 < len(option.choices) < 7 else None)
    return option.name.upper()


def _value(option: Option, value: Any) -> Any:
    """What Typer made of the words, checked; a list that was not given is the default."""
    if option.many:
        if not value:
            return option.default
        if option.commas:
            # `-s a -s b` and `-s a,b` mean the same; `check_option` splits.
            value = ",".join(value)
    # Not given, so not checked: a default may be outside of the bounds, as None is.
    if value is option.default:
        return value
    name = option.name.upper() if option.positional else flags_of(option)[-1].split("/")[0]
    return check_option(option, value, name=name)
