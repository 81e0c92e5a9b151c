"""The `kprune` command.

Importing it costs nothing: the commands are imported while Ctrl-C is already answered in one line.
"""

import sys
from collections.abc import Sequence

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit; arguments default to the process's own."""
    try:
        from vllm_kprune.cli.app import run
    except KeyboardInterrupt:
        sys.stderr.write("error: stopped\n")
        sys.exit(130)
    run(arguments)
