"""`kprune compare --rejudge FOLDER`: which options may stand beside it."""

from collections.abc import Iterable

import typer

from vllm_kprune.cli.compare_options import JudgeOptions, OutputOptions, SelectionOptions
from vllm_kprune.cli.typer_options import flags_of
from vllm_kprune.errors import KPruneError
from vllm_kprune.options import options_of

__all__ = ["given_flags", "refuse_asking"]

_ASKING = ("--fresh", "--plan")  # of the report's options, those that need servers


def given_flags(context: typer.Context) -> list[str]:
    """The options of this command that the user gave, by their long names."""
    # By the names of kinds and sources: some versions of Typer bring a click of their own.
    given = [
        one
        for one in context.command.params
        if (source := context.get_parameter_source(str(one.name))) and source.name != "DEFAULT"
    ]
    return [max(one.opts, key=len) for one in given if one.param_type_name == "option"]


def refuse_asking(flags: Iterable[str]) -> None:
    """Refuse options that change what is asked; it was asked already."""
    tables = (SelectionOptions, JudgeOptions, OutputOptions)
    judging = [max(flags_of(one), key=len) for table in tables for one in options_of(table)]
    allowed = [flag for flag in judging if flag not in _ASKING]
    if wrong := [flag for flag in flags if flag not in allowed]:
        others = ", ".join(flag for flag in allowed if flag != "--rejudge")
        raise KPruneError(
            f"{wrong[0]} would change what is asked, and --rejudge only judges saved answers; "
            f"beside it you can use {others}"
        )
