"""Options, each declared once: a field of a frozen dataclass with its default, bounds and help.

    @dataclass(frozen=True, kw_only=True)
    class Sizing:
        coverage: float | None = option(
            None, "Keep tokens until this share of the evidence is covered.", above=0, most=1
        )

Such a dataclass is a table of options. From it are made the arguments of vLLM's command line
(`add_arguments`), those of kprune's own (`cli.options`), the check of values from HTTP requests,
YAML files and Python (`check_values`), and the rows of the reference pages (`reference_rows`).

An option may exist in several forms, under another name in each: `--kprune-prune-roles` of a
server, `kprune_prune_roles` of a request. Prefixes are the caller's: a form's name here is plain.
What options mean together (one of two, one needs the other) is checked where they become a value.
"""

import argparse
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, dataclass, field, fields, replace
from functools import lru_cache
from pathlib import Path
from types import NoneType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from vllm_kprune.errors import KPruneError, nearest, shown

__all__ = [
    "REQUIRED",
    "Option",
    "OptionRow",
    "add_arguments",
    "check_option",
    "check_values",
    "given_arguments",
    "listed",
    "make",
    "option",
    "options_of",
    "reference_rows",
    "refuse_unknown",
    "shown_default",
]

T = TypeVar("T")
REQUIRED: Any = MISSING
_KEY = "option"
_LONGEST_LIST = 1024
_LONGEST_NUMBER = 32
_FEW = 6
_NOUNS = {
    bool: ("true or false", "true or false"),
    int: ("a whole number", "whole numbers"),
    float: ("a number", "numbers"),
    str: ("a text", "a text or a list of texts"),
    Path: ("a path", "a path or a list of paths"),
}


@dataclass(frozen=True, kw_only=True)
class Option:
    """One option; `name`, `kind` and `many` come from the field, the rest from `option()`.

    `kind` is the type of a single value: bool, int, float, str or Path. With `many` the value is a
    tuple of them: of one value that was given alone (`single`), of a text's parts between commas
    (`commas`), or of a list's. `least`, `above` and `most` bound a number, or a text's length.
    Of `choices`, `hint(text, choices)` names the nearest where there are many.
    `words` are texts that stand for a value ("off" for 1.0), `server_words` only in a server's
    form. `then(name, value)` has the last word on a checked value.
    """

    help: str
    name: str = ""
    kind: type = str
    many: bool = False
    default: Any = None
    default_text: str = ""
    noun: str = ""
    least: float | None = None
    above: float | None = None
    most: float | None = None
    most_items: int = 64
    least_items: int = 0
    single: bool = True
    commas: bool = False
    choices: tuple[str, ...] = ()
    any_case: bool = False
    hint: Callable[[str, Iterable[str]], str] = nearest
    pattern: str | None = None
    words: Mapping[str, Any] = field(default_factory=dict)
    server_words: Mapping[str, Any] = field(default_factory=dict)
    then: Callable[[str, Any], Any] | None = None
    metavar: str | None = None
    flags: tuple[str, ...] = ()
    positional: bool = False
    existing: Literal["file", "folder"] | None = None
    group: str | None = None
    forms: Mapping[str, str] | None = None

    def name_in(self, form: str) -> str | None:
        """Its name in a form; None where it does not exist there. "" is Python: the field's own."""
        return self.name if self.forms is None or not form else self.forms.get(form)

    @property
    def bounds(self) -> str:
        """The bounds in words: "from 0 to 1", "above 0 and at most 1", "1 or more"."""
        unit = " characters" if self.kind is str else ""
        least, most = self._least, self.most
        if self.above is not None:
            upper = "" if most is None else f" and at most {_plain(most)}"
            return f"above {_plain(self.above)}{upper}{unit}"
        if most is not None:
            between = f"{_plain(least or 0)} to {_plain(most)}"
            return f"of {between}{unit}" if unit else f"from {between}"
        return f"{_plain(least)} or more" if least is not None and not unit else ""

    @property
    def expected(self) -> str:
        """What a value must be, for an error message and the reference."""
        also = f", or {listed(self.words, 'or')}" if self.words else ""
        noun = self.noun or _NOUNS[self.kind][self.many]
        if self.choices:
            few = len(self.choices) <= _FEW
            return (self.noun or ("" if few else noun) or listed(self.choices, "or")) + also
        separator = ", " if self.bounds.startswith("above") or self.bounds.endswith("more") else " "
        return separator.join(part for part in (noun, self.bounds) if part) + also

    @property
    def _least(self) -> float | None:
        return 1 if self.least is None and self.kind is str else self.least


def option(default: Any, help: str, *, forms: Iterable[str] | None = None, **how: Any) -> Any:
    """A field of a dataclass that is an option; `how` has more fields of `Option`.

    `default` may be `REQUIRED`. `forms` names the forms in which the option exists: an iterable, or
    a mapping from each form to the option's name there. Without it, it exists in every form.
    """
    if forms is not None and not isinstance(forms, Mapping):
        forms = dict.fromkeys(forms, "")
    spec = Option(help=help, default=default, forms=forms, **how)
    return field(default=default, metadata={_KEY: spec})


def options_of(table: type, form: str | None = None) -> tuple[Option, ...]:
    """The options that a dataclass declares, in their order; only those of a form, if one is given.

    Fields without `option()` are none.
    """
    hashable: Any = table  # mypy does not take every class for one
    return _options_of(hashable, form)


@lru_cache(maxsize=256)
def _options_of(table: type, form: str | None) -> tuple[Option, ...]:
    hints = get_type_hints(table)
    found = [_complete(f.metadata[_KEY], f.name, hints[f.name]) for f in fields(table)
             if _KEY in f.metadata]  # fmt: skip
    return tuple(one for one in found if form is None or one.name_in(form) is not None)


def _complete(spec: Option, name: str, hint: Any) -> Option:
    """What only the field knows: its name, and from its type the kind, choices and `many`."""
    hint = _without_none(hint)
    many = get_origin(hint) is tuple
    if many:
        hint = _without_none(get_args(hint)[0])
    choices = spec.choices
    if get_origin(hint) is Literal:
        hint, choices = str, choices or get_args(hint)
    if hint not in (bool, int, float, str, Path):
        raise TypeError(f"option {name}: no option can be of type {hint}")
    forms = spec.forms and {form: other or name for form, other in spec.forms.items()}
    return replace(spec, name=name, kind=hint, many=many, choices=choices, forms=forms)


def _without_none(hint: Any) -> Any:
    others = [part for part in get_args(hint) if part is not NoneType]
    return others[0] if NoneType in get_args(hint) and len(others) == 1 else hint


def check_values(
    options: Iterable[Option],
    values: Mapping[Any, Any],
    *,
    form: str = "",
    prefix: str = "",
    text: bool = False,
) -> dict[str, Any]:
    """Check the values that were given, by their names in `form`; returns them by field name.

    `prefix` is how names begin in an error ("kprune_", "--kprune-"). `text`: numbers and switches
    may be given as text, as HTTP clients do. Raises `KPruneError` for unknown names, which it
    answers with the nearest known one, and for values of a wrong type or out of bounds.
    """
    known = {name: one for one in options if (name := one.name_in(form)) is not None}
    refuse_unknown(values, known)
    return {
        known[key].name: check_option(
            known[key], value, name=_spelled(prefix, key), text=text, server=form == "server"
        )
        for key, value in values.items()
    }


def refuse_unknown(names: Iterable[Any], known: Iterable[str], where: str = "") -> None:
    """Raise `KPruneError` for the first name that is not known, with the nearest that is."""
    known = list(known)
    for name in names:
        if name not in known:
            hint = nearest(str(name)[:64], known)
            raise KPruneError(f"{where}{where and ': '}unknown option {shown(name)}; {hint}")


def _spelled(prefix: str, name: str) -> str:
    return prefix + (name.replace("_", "-") if prefix.startswith("-") else name)


def make(table: type[T], values: Mapping[Any, Any], **how: Any) -> T:
    """A table's value from hostile values, checked as by `check_values`; none may be missing."""
    options = options_of(table)
    checked = check_values(options, values, **how)
    for one in options:
        if one.default is REQUIRED and one.name not in checked:
            raise KPruneError(f"{one.name} is missing, expected {one.expected}")
    return table(**checked)


def check_option(
    option: Option,
    value: object,
    *,
    name: str = "",
    text: bool = False,
    server: bool = False,
) -> Any:
    """A single value, checked; `KPruneError` says what was got and what is expected.

    >>> check_option(Option(name="keep", kind=float, most=1, help=""), "0.5", text=True)
    0.5
    """
    name = name or option.name
    if server and option.server_words:
        option = replace(option, words={**option.words, **option.server_words}, server_words={})
    if value is None and option.default is None and not text:
        return None
    if isinstance(value, str) and (word := value.strip().lower()) in option.words:
        return option.words[word]
    # An option that has words comes as text from command lines, so its numbers may as well.
    text = text or bool(option.words)
    checked = (_many if option.many else _one)(option, value, name, text)
    return option.then(name, checked) if option.then else checked


def _many(option: Option, value: object, name: str, text: bool) -> tuple[Any, ...]:
    if isinstance(value, str) and option.commas:
        if len(value) > _LONGEST_LIST:
            raise _wrong(option, value, name)
        value = [part.strip() for part in value.split(",") if part.strip()]
    elif isinstance(value, str | Path) and option.single:
        value = [value]
    if not isinstance(value, list | tuple):
        raise _wrong(option, value, name)
    if len(value) > option.most_items:
        raise KPruneError(f"{name}: got {len(value)} values, expected at most {option.most_items}")
    if len(value) < option.least_items:
        many = len(option.choices) > _FEW
        known = f"; known: {', '.join(sorted(option.choices))}" if many else ""
        raise KPruneError(f"{name}: got none, expected {option.expected}{known}")
    return tuple(_one(option, item, name, text) for item in value)


def _one(option: Option, value: object, name: str, text: bool) -> Any:
    if option.choices:
        return _choice(option, value, name)
    checked = _READERS[option.kind](value, text)
    if checked is None or not _fits(option, checked):
        raise _wrong(option, value, name)
    return checked


def _choice(option: Option, value: object, name: str) -> str:
    word = value.strip() if isinstance(value, str) and option.any_case else value
    known = {c.lower() if option.any_case else c: c for c in option.choices}
    found = known.get(word.lower() if option.any_case else word) if isinstance(word, str) else None
    if found is not None:
        return found
    if isinstance(word, str) and len(option.choices) > _FEW:
        raise KPruneError(
            f"{name}: unknown {shown(word)}; {option.hint(word[:64], option.choices)}"
        )
    raise _wrong(option, value, name)


def _wrong(option: Option, value: object, name: str) -> KPruneError:
    return KPruneError(f"{name}: got {shown(value)}, expected {option.expected}")


def _fits(option: Option, value: Any) -> bool:
    if option.kind is bool:
        return True
    size = len(value) if isinstance(value, str) else 1 if isinstance(value, Path) else value
    return (
        (option._least is None or size >= option._least)
        and (option.above is None or size > option.above)
        and (option.most is None or size <= option.most)
        and (option.pattern is None or re.fullmatch(option.pattern, str(value)) is not None)
    )


def _as_bool(value: object, text: bool) -> bool | None:
    if isinstance(value, bool):
        return value
    if text and isinstance(value, int | str):  # not 1.0
        word = value.strip().lower() if isinstance(value, str) else value
        return {"true": True, "on": True, 1: True, "false": False, "off": False, 0: False}.get(word)
    return None


def _as_float(value: object, text: bool) -> float | None:
    """A finite number, or the text of one; a bool is none."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    if isinstance(value, str) and (not text or len(value) > _LONGEST_NUMBER):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _as_int(value: object, text: bool) -> int | None:
    if isinstance(value, float) and not text:
        return None
    number = _as_float(value, text)
    return int(number) if number is not None and number.is_integer() else None


def _as_text(value: object, text: bool) -> str | None:
    return value if isinstance(value, str) else None


def _as_path(value: object, text: bool) -> Path | None:
    return Path(value) if isinstance(value, str | Path) and str(value) else None


_READERS: Mapping[type, Callable[[object, bool], Any]] = {
    bool: _as_bool,
    int: _as_int,
    float: _as_float,
    str: _as_text,
    Path: _as_path,
}


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
                _spelled(prefix, name),
                dest=dest + name,
                default=argparse.SUPPRESS,
                help=_full_help(one).replace("%", "%%"),
                **how,
            )


def _argparse_rules(option: Option) -> dict[str, Any]:
    if option.kind is bool:
        return {"action": "store_const", "const": True}
    rules: dict[str, Any] = {"metavar": option.metavar or _metavar(option)}
    if option.many and not option.commas:
        rules |= {"nargs": "+", "action": "extend"}
    if option.kind in (int, float) and not (option.words or option.server_words):
        rules["type"] = option.kind
    return rules


def _full_help(option: Option) -> str:
    default = option.default_text or shown_default(option)
    return f"{option.help} Default: {default}." if default else option.help


def _metavar(option: Option) -> str:
    if option.choices and len(option.choices) <= _FEW and not option.many:
        return "|".join(option.choices)
    return {int: "N", float: "NUMBER", Path: "PATH"}.get(option.kind, "TEXT")


def given_arguments(
    args: argparse.Namespace, options: Iterable[Option], *, form: str, dest: str
) -> dict[str, Any]:
    """The options that were given on a command line, by their names in the form; not checked."""
    names = [name for one in options if (name := one.name_in(form)) is not None]
    values = {name: getattr(args, dest + name, None) for name in names}
    return {name: value for name, value in values.items() if value is not None}


@dataclass(frozen=True)
class OptionRow:
    """A row of a reference page, all as text; `flags` are every spelling on a command line."""

    name: str
    flags: tuple[str, ...]
    type: str
    default: str
    bounds: str
    help: str
    group: str


def reference_rows(
    options: Iterable[Option], *, form: str = "", prefix: str = "--"
) -> tuple[OptionRow, ...]:
    """What the reference says of options: a row for each that exists in the form."""
    rows = []
    for one in options:
        name = one.name_in(form)
        if name is not None:
            flags = (name,) if one.positional else one.flags or (_spelled(prefix, name),)
            kind = one.kind.__name__.lower()
            rows.append(
                OptionRow(
                    name,
                    flags,
                    f"list of {kind}" if one.many else kind,
                    one.default_text or shown_default(one),
                    one.expected,
                    one.help,
                    one.group or "",
                )
            )
    return tuple(rows)


def shown_default(option: Option) -> str:
    """The default as a reader sees it; empty where there is none to speak of."""
    default = option.default
    if default is REQUIRED or default is None or default == () or default is False:
        return ""
    if isinstance(default, tuple):
        return ", ".join(map(str, default))
    return "on" if default is True else str(default)


def listed(names: Iterable[str], conjunction: str) -> str:
    """Names in a row.

    >>> listed(["a", "b", "c"], "or")
    'a, b or c'
    """
    names = list(names)
    if len(names) < 2:
        return "".join(names)
    return f"{', '.join(names[:-1])} {conjunction} {names[-1]}"


def _plain(number: float) -> str:
    return f"{number:,}" if isinstance(number, int) else f"{number:g}"
