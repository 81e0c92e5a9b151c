"""The error that kprune raises for a user's mistake.

Every message says what was found, what was expected, and what to do. The command prints it on one
line and exits with code 2. Inside vLLM it is a `ValueError`, whose message vLLM's servers show.
"""

from collections.abc import Iterable
from difflib import get_close_matches
from reprlib import Repr

__all__ = ["KPruneError", "nearest", "shown"]


class KPruneError(ValueError):
    """A mistake that the user can correct."""


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint to append to "unknown …": the nearest known name, or all of them.

    >>> nearest("enk", ["enko", "enkozh"])
    "did you mean 'enko'? (known: enko, enkozh)"
    """
    names = sorted(known)
    close = get_close_matches(name, names, n=1, cutoff=0.5)
    listed = f"known: {', '.join(names)}"
    return f"did you mean '{close[0]}'? ({listed})" if close else listed


def shown(value: object) -> str:
    """A value from outside, made safe for a message: short, and on one line.

    >>> shown("one\\nline")
    "'one\\\\nline'"
    """
    # repr escapes line breaks and control characters, so a value cannot forge a line of a log. It
    # is cut first, so that a huge value is not written out as a whole.
    text = repr(value[:64]) if isinstance(value, str) else _FEW.repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


class _FewParts(Repr):
    """Shows a few parts of a collection, and any number."""

    def repr_int(self, value: int, level: int) -> str:
        # Python refuses to write numbers of more than 4,300 digits.
        bits = value.bit_length()
        return repr(value) if bits < 256 else f"a number of {bits:,} bits"


_FEW = _FewParts()
_FEW.maxlevel = 3
_FEW.maxstring = _FEW.maxother = 80
