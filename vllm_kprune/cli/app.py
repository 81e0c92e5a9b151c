"""The `kprune` command: its subcommands, and one line, no traceback, for a user's mistake.

Exit codes: 0 done, 1 a check failed, 2 a mistake that the user can correct, 3 only partly done,
130 Ctrl-C.
"""

import importlib
import sys
from collections.abc import Sequence

import typer

from vllm_kprune import __version__
from vllm_kprune.cli.console import say_error
from vllm_kprune.errors import KPruneError

__all__ = ["app", "main"]

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
        module = importlib.import_module(f"vllm_kprune.cli.{name}")
        module.register(app)


_register()


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit; arguments default to the process's own."""
    try:
        app(list(arguments) if arguments is not None else None)
    except KPruneError as error:
        say_error(str(error))
        sys.exit(2)
    except KeyboardInterrupt:
        say_error("stopped")
        # 128 + SIGINT, as shells report it.
        sys.exit(130)
    except BrokenPipeError:
        sys.stderr.close()  # a reader such as `head` has closed the pipe; Python would complain
        sys.exit(0)
