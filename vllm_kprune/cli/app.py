"""The `kprune` command: its subcommands, and one line, no traceback, for a user's mistake.

Exit codes: 0 done, 1 a check failed, 2 a mistake that the user can correct, 3 only partly done,
130 Ctrl-C, 143 SIGTERM.
"""

import importlib
import io
import os
import sys
from collections.abc import Sequence
from contextlib import suppress

import typer

from vllm_kprune import __version__
from vllm_kprune.cli.console import say_error
from vllm_kprune.errors import KPruneError, shown
from vllm_kprune.tokenizer.encoder import raise_failure

__all__ = ["app", "run"]

app = typer.Typer(
    name="kprune",
    help="Keep only the tokens that your languages need, and serve the smaller model with vLLM.",
    epilog="Start with: kprune build MODEL --profile enko -o DIR; vllm serve DIR --plugin kprune",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",  # reflows the docstrings
    context_settings={"help_option_names": ["-h", "--help"]},
)
_COMMANDS = (
    *("analyze", "build", "clean", "compare", "demo", "demo_model", "export", "heal", "inspect"),
    *("prompt", "sparsify", "tokenizer", "verify"),
)


@app.callback(invoke_without_command=True)
def _root(
    version: bool = typer.Option(False, "--version", help="Print the version and exit."),
) -> None:
    if version:
        typer.echo(f"kprune {__version__}")
        raise typer.Exit


def _register() -> None:
    for name in _COMMANDS:
        try:
            module = importlib.import_module(f"vllm_kprune.cli.{name}")
        except ModuleNotFoundError as error:
            if error.name != "torch":
                raise
            _register_without_torch(name)
            continue
        module.register(app)


def _register_without_torch(name: str) -> None:
    """PyTorch comes with vLLM, which the other commands do without."""

    def refuse() -> None:
        raise KPruneError(
            f"kprune {name} needs PyTorch, which is not installed: it comes with vLLM "
            "(pip install 'vllm-kprune[gpu]'), or install torch"
        )

    every = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}
    app.command(name, help="(Needs PyTorch, which is not installed.)", context_settings=every)(
        refuse
    )


_register()


def run(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit; arguments default to the process's own."""
    # Names of files need not be UTF-8, and where one is printed it must not end the command.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        try:
            app(list(arguments) if arguments is not None else None)
        finally:
            sys.stdout.flush()  # while a full disk can still be told
    except KPruneError as error:
        say_error(str(error))
        sys.exit(2)
    except BrokenPipeError:
        sys.stderr.close()  # a reader such as `head` has closed the pipe; Python would complain
        sys.exit(0)
    except OSError as error:
        _say_os_error(error)
        sys.exit(2)
    except MemoryError:
        say_error("there is not enough memory for this")
        sys.exit(2)
    except BaseException as error:
        _say_failure_of_tokenizer(error)
        raise


def _say_os_error(error: OSError) -> None:
    """What the system refused: a disk that is full, a name that is too long."""
    reason = error.strerror or str(error)
    if error.filename is not None:
        say_error(f"{shown(error.filename)[1:-1]}: {reason}; nothing more was done")
        return
    say_error(f"the output cannot be written: {reason}")
    with suppress(OSError, ValueError):
        # Python writes what is left when it ends, and would fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _say_failure_of_tokenizer(error: BaseException) -> None:
    try:
        raise_failure(error, "the tokenizer fails on a text")
    except KPruneError as failure:
        say_error(str(failure))
        sys.exit(2)
