"""`kprune compare` as a user sees it: exit code, standard output and standard error."""

from collections.abc import Callable

import pytest

from vllm_kprune.cli import main

__all__ = ["Run", "compare_command"]

Run = Callable[..., tuple[int, str, str]]


def compare_command(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs the command with the given arguments."""

    def run_command(*arguments: object) -> tuple[int, str, str]:
        code = 0
        try:
            main(["compare", *map(str, arguments)])
        except SystemExit as stop:
            code = int(stop.code or 0)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run_command
