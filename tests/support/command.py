"""`kprune` as a user sees it: exit code, standard output and standard error."""

from collections.abc import Callable

import pytest

from vllm_kprune.cli import main

__all__ = ["Run", "command_runner"]

Run = Callable[..., tuple[int, str, str]]


def command_runner(capsys: pytest.CaptureFixture[str], *first: object) -> Run:
    """Runs the command line with `first`, and then the given arguments."""

    def run_command(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()  # what making the input wrote
        code = 0
        try:
            main([*map(str, (*first, *arguments))])
        except SystemExit as stop:
            code = int(stop.code or 0)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run_command
