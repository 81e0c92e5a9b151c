"""`kprune verify`: check the laws of a pruned model on the user's own text."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import typer
from rich.markup import escape

from vllm_kprune.checkpoint.verify import LawResult, verify_overlay
from vllm_kprune.cli.console import output_console, say_error, steps, write_json
from vllm_kprune.errors import KPruneError
from vllm_kprune.vocabulary.evidence import read_corpus

__all__ = ["keep_if_lawful", "register", "show_law"]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("verify")(_run)


def _run(
    folder: Path = typer.Argument(help="Folder made by `kprune build` or `kprune export`."),
    text: list[Path] = typer.Option(
        [], "--text", help="Your own text (.txt, .jsonl, also .gz or .zst); repeat for several."
    ),
    corpus: list[Path] = typer.Option(
        [], "--corpus", help="The corpora it was built with, to repeat the selection as well."
    ),
    base: Path | None = typer.Option(None, "--base", help="Base model's folder, if it was moved."),
    json_to: str | None = typer.Option(
        None, "--json", help="Write the results as JSON; - prints them."
    ),
) -> None:
    """Check that a pruned model's tokenizer keeps its promises, on your own text.

    Laws 1 (text whose tokens are kept is encoded as before), 2 (nothing is lost), 3 (no dead rows),
    5 (building again gives the same files) and 6 (every id is mapped); of a folder made by
    `kprune export` also that its weights are the base's, bit for bit. Exit code 1, and the first
    counter-example, if one does not hold. Without --text the languages' word lists are used.
    """
    for path in text:
        if not path.is_file():
            raise KPruneError(f"text {path} does not exist or is not a file")
    lines = itertools.chain.from_iterable(map(read_corpus, text)) if text else None
    with steps() as progress:
        results = verify_overlay(folder, lines, corpora=corpus, base=base, progress=progress)
    if json_to:
        write_json([{**asdict(result), "holds": result.holds} for result in results], json_to)
    if json_to != "-":
        for result in results:
            show_law(result)
    if not all(result.holds for result in results):
        raise typer.Exit(1)


def keep_if_lawful(
    folder: Path,
    *,
    corpora: Sequence[Path] = (),
    base: Path | None = None,
    progress: Callable[[str, float], None],
) -> None:
    """Check a folder that is being made; if a law is broken, say which and exit with 1."""
    results = verify_overlay(folder, corpora=corpora, base=base, progress=progress)
    if broken := [result for result in results if not result.holds]:
        for result in broken:
            show_law(result)
        say_error("it breaks a law: nothing was kept (without --verify it is); please report this")
        raise typer.Exit(1)


def show_law(result: LawResult) -> None:
    """Print a law, whether it holds, and the counter-example if it does not."""
    mark = "[green]holds[/]" if result.holds else "[bold red]BROKEN[/]"
    note = f" ({result.note})" if result.note else ""
    line = f"law {result.law}  {result.title}: {mark}, {result.checked:,} checked{escape(note)}"
    output_console.print(line, soft_wrap=True)
    if result.counter_example:
        output_console.print(f"       {result.counter_example}", markup=False, soft_wrap=True)
