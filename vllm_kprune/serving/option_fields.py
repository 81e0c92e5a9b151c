"""How an option is declared: a field with its default, its help and how it is read."""

from dataclasses import field
from typing import Any

__all__ = ["flag", "option"]


def option(default: Any, metavar: str | None, help: str, **how: Any) -> Any:
    """A dataclass field that is an option; `how` goes to argparse."""
    named = {"metavar": metavar} if metavar else {}
    return field(default=default, metadata={**named, "help": help, **how})


def flag(name: str) -> str:
    """How an option is written on the command line.

    >>> flag("guard_fixed")
    '--kprune-guard-fixed'
    """
    return f"--kprune-{name.replace('_', '-')}"
