"""Every option that kprune has, as rows for the reference pages.

The pages are generated, so that they cannot differ from what the programs take.
"""

from collections.abc import Mapping
from typing import Any

from vllm_kprune.cli.app import app
from vllm_kprune.cli.typer_options import FORM
from vllm_kprune.options import OptionRow, options_of, reference_rows
from vllm_kprune.profile import Profile
from vllm_kprune.prompt.options import prune_options
from vllm_kprune.serving.options import FLAG_PREFIX, PREFIX, server_options
from vllm_kprune.serving.options import FORM as SERVER
from vllm_kprune.serving.request_options import FORM as REQUEST
from vllm_kprune.serving.request_options import GUARD_OPTIONS, HEAD_OPTIONS

__all__ = ["all_option_rows"]


def all_option_rows() -> Mapping[str, tuple[OptionRow, ...]]:
    """The rows of each page: "kprune build" and the other commands, "vllm serve", "vllm_xargs"
    (requests) and "profile" (YAML files)."""
    groups = [("", app), *((f"{one.name} ", one.typer_instance) for one in app.registered_groups)]
    commands = {
        f"kprune {prefix}{command.name}": _rows(command.callback)
        for prefix, group in groups
        if group is not None
        for command in group.registered_commands
    }
    requests = (*GUARD_OPTIONS, *HEAD_OPTIONS, *prune_options(REQUEST))
    return {
        **commands,
        "vllm serve": reference_rows(server_options(), form=SERVER, prefix=FLAG_PREFIX),
        "vllm_xargs": reference_rows(requests, form=REQUEST, prefix=PREFIX),
        "profile": reference_rows(options_of(Profile), form="profile", prefix=""),
    }


def _rows(callback: Any) -> tuple[OptionRow, ...]:
    """Of the options that a command takes from tables (`with_options`)."""
    return reference_rows(getattr(callback, "options", ()), form=FORM, prefix="--")
