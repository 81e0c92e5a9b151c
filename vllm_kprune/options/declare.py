"""The declaration of an option: `option()` makes a field one, and `options_of` reads a table."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, dataclass, field, fields, replace
from functools import lru_cache
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from vllm_kprune.errors import nearest

__all__ = [
    "FEW",
    "REQUIRED",
    "Option",
    "listed",
    "option",
    "options_of",
    "shown_default",
    "spelled",
]

# dataclasses' own mark for "no default": `field(default=REQUIRED)` makes the field required.
REQUIRED: Any = MISSING
# More choices than these are not listed in a message, which names the nearest instead.
FEW = 6
_KEY = "option"
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
        # `forms` None and {} differ: every form, and none but Python.
        return self.name if self.forms is None or not form else self.forms.get(form)

    @property
    def bounds(self) -> str:
        """The bounds in words: "from 0 to 1", "above 0 and at most 1", "1 or more"."""
        unit = " characters" if self.kind is str else ""
        least, most = self.lower, self.most
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
            few = len(self.choices) <= FEW
            return (self.noun or ("" if few else noun) or listed(self.choices, "or")) + also
        separator = ", " if self.bounds.startswith("above") or self.bounds.endswith("more") else " "
        return separator.join(part for part in (noun, self.bounds) if part) + also

    @property
    def lower(self) -> float | None:
        """The lower bound; a text has at least one character unless `least` says otherwise."""
        # An empty text is a mistake unless the option says `least=0`.
        return 1 if self.least is None and self.kind is str else self.least


def option(default: Any, help: str, *, forms: Iterable[str] | None = None, **how: Any) -> Any:
    """A field of a dataclass that is an option; `how` has more fields of `Option`.

    `default` may be `REQUIRED`. `forms` names the forms in which the option exists: an iterable, or
    a mapping from each form to the option's name there. Without it, it exists in every form.
    """
    if forms is not None and not isinstance(forms, Mapping):
        # "" is the field's own name, which is not known yet (see `_complete`).
        forms = dict.fromkeys(forms, "")
    spec = Option(help=help, default=default, forms=forms, **how)
    return field(default=default, metadata={_KEY: spec})


def options_of(table: type, form: str | None = None) -> tuple[Option, ...]:
    """The options that a dataclass declares, in their order; only those of a form, if one is given.

    Fields without `option()` are none.
    """
    hashable: Any = table  # mypy does not take every class for one
    return _options_of(hashable, form)


# Cached, because checks of requests ask for it, and resolving type hints is slow.
@lru_cache(maxsize=256)
def _options_of(table: type, form: str | None) -> tuple[Option, ...]:
    hints = get_type_hints(table)
    found = [_complete(f.metadata[_KEY], f.name, hints[f.name]) for f in fields(table)
             if _KEY in f.metadata]  # fmt: skip
    return tuple(one for one in found if form is None or one.name_in(form) is not None)


def _complete(spec: Option, name: str, hint: Any) -> Option:
    """What only the field knows: its name, and from its type the kind, choices and `many`."""
    hint = _without_none(hint)
    # `tuple[str, ...] | None` gives many str, `Literal["a", "b"]` gives str with two choices.
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


def spelled(prefix: str, name: str) -> str:
    """A name with its prefix; hyphens take the place of underscores after `--`."""
    return prefix + (name.replace("_", "-") if prefix.startswith("-") else name)


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
