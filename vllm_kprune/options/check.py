"""The check of values for options, from HTTP requests, YAML files and Python: they are hostile."""

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from vllm_kprune.errors import KPruneError, nearest, shown
from vllm_kprune.options.declare import FEW, REQUIRED, Option, options_of, spelled

__all__ = ["check_option", "check_values", "make", "refuse_unknown"]

T = TypeVar("T")
# Characters of a text, both: before it is split at commas, or read as a number.
_LONGEST_LIST = 1024
_LONGEST_NUMBER = 32
# To Python, 1_0 and digits of other scripts are numbers as well.
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)


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
            known[key], value, name=spelled(prefix, key), text=text, server=form == "server"
        )
        for key, value in values.items()
    }


def refuse_unknown(names: Iterable[Any], known: Iterable[str], where: str = "") -> None:
    """Raise `KPruneError` for the first name that is not known, with the nearest that is."""
    known = list(known)
    for name in names:
        if name not in known:
            # Names are hostile: comparing texts takes time that grows with the square of their
            # length.
            hint = nearest(str(name)[:64], known)
            raise KPruneError(f"{where}{where and ': '}unknown option {shown(name)}; {hint}")


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
    # YAML and Python write None for "not given". As text, over HTTP, null is a mistake.
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
        # Before the split, which would make a list of any size.
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
        many = len(option.choices) > FEW
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
    # The value becomes the choice as it is declared: "hangul" gives "Hangul".
    known = {c.lower() if option.any_case else c: c for c in option.choices}
    found = known.get(word.lower() if option.any_case else word) if isinstance(word, str) else None
    if found is not None:
        return found
    if isinstance(word, str) and len(option.choices) > FEW:
        raise KPruneError(
            f"{name}: unknown {shown(word)}; {option.hint(word[:64], option.choices)}"
        )
    raise _wrong(option, value, name)


def _wrong(option: Option, value: object, name: str) -> KPruneError:
    return KPruneError(f"{name}: got {shown(value)}, expected {option.expected}")


def _fits(option: Option, value: Any) -> bool:
    if option.kind is bool:
        return True
    # A path has no bounds of its own: 1 passes those of a text.
    size = len(value) if isinstance(value, str) else 1 if isinstance(value, Path) else value
    return (
        (option.lower is None or size >= option.lower)
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
    # `isinstance(True, int)` holds in Python, and `float(True)` is 1.0.
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    if isinstance(value, str) and (
        not text or len(value) > _LONGEST_NUMBER or not _NUMBER.fullmatch(value.strip())
    ):
        return None
    try:
        number = float(value)
    # `float(10**400)`: JSON has integers of any length.
    except (ValueError, OverflowError):
        return None
    # "nan" and "inf" are floats to Python, and no bound refuses nan: each comparison is False.
    return number if math.isfinite(number) else None


def _as_int(value: object, text: bool) -> int | None:
    # 2.0 from Python or YAML is no whole number. From HTTP it is: JavaScript knows only one kind.
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
