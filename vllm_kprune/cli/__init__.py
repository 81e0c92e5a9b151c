"""The `kprune` command.

Importing it costs nothing: the commands are imported while Ctrl-C is already answered in one line,
and SIGTERM already cleans up. Before that comes Python's own start, which nothing here can change.
"""

import sys
from collections.abc import Sequence

from vllm_kprune.signals import Terminated, ended_by_signals

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit; arguments default to the process's own."""
    try:
        with ended_by_signals():
            from vllm_kprune.cli.app import run

            run(arguments)
    except (KeyboardInterrupt, Terminated) as error:
        sys.stderr.write("error: stopped\n")
        # 128 + SIGINT, as shells report it.
        sys.exit(error.code if isinstance(error, Terminated) else 130)
    except SystemExit as stop:
        # Typer answers Ctrl-C with this code, and in silence.
        if stop.__context__ and isinstance(stop.__context__.__cause__, KeyboardInterrupt):
            sys.stderr.write("error: stopped\n")
        raise
