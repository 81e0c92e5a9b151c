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

from vllm_kprune.options.arguments import add_arguments, given_arguments
from vllm_kprune.options.check import check_option, check_values, make, refuse_unknown
from vllm_kprune.options.declare import (
    REQUIRED,
    Option,
    listed,
    option,
    options_of,
    shown_default,
    spelled,
)
from vllm_kprune.options.reference import OptionRow, reference_rows

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
    "spelled",
]
