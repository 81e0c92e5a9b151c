"""`kprune verify`: check the laws of a pruned model on the user's own text."""

import itertools
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from vllm_kprune.checkpoint.manifest import MANIFEST_NAME, is_export, is_overlay
from vllm_kprune.checkpoint.overlay import write_overlay
from vllm_kprune.checkpoint.plan import make_tokenizer_plan
from vllm_kprune.checkpoint.verify import LawResult, verify_overlay
from vllm_kprune.cli.console import output_console, say_error, steps, write_json
from vllm_kprune.cli.options import JsonOption, TextOption
from vllm_kprune.errors import KPruneError
from vllm_kprune.profile import load_profile
from vllm_kprune.progress import Progress
from vllm_kprune.vocabulary.corpus import read_corpus

__all__ = ["keep_if_lawful", "register", "show_law"]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("verify")(_run)


def _run(
    folder: Annotated[
        Path, typer.Argument(help="Folder made by `kprune build`, `export` or `tokenizer`.")
    ],
    text: TextOption = [],  # noqa: B006 - Typer copies it
    profile: Annotated[
        str | None,
        typer.Option(
            "--profile",
            help="FOLDER is not pruned yet: check what this profile would make of its tokenizer.",
        ),
    ] = None,
    corpus: Annotated[
        list[Path],
        typer.Option(
            "--corpus", help="The corpora it was built with, to repeat the selection as well."
        ),
    ] = [],  # noqa: B006 - Typer copies it
    base: Annotated[
        Path | None, typer.Option("--base", help="Base model's folder, if it was moved.")
    ] = None,
    json_to: JsonOption = None,
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
    with steps() as progress, _pruned(folder, profile, corpus, base, progress) as pruned:
        results = verify_overlay(pruned, lines, corpora=corpus, base=base, progress=progress)
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
    progress: Progress,
) -> None:
    """Check a folder that is being made; if a law is broken, say which and exit with 1."""
    results = verify_overlay(folder, corpora=corpora, base=base, progress=progress)
    if broken := [result for result in results if not result.holds]:
        for result in broken:
            show_law(result)
        say_error("it breaks a law: nothing was kept (without --verify it is); please report this")
        raise typer.Exit(1)


@contextmanager
def _pruned(
    folder: Path,
    profile: str | None,
    corpora: list[Path],
    base: Path | None,
    progress: Progress,
) -> Iterator[Path]:
    """The pruned folder to check: `folder` itself, or its tokenizer pruned for a profile."""
    if profile is None:
        if not is_overlay(folder) and not is_export(folder):
            raise KPruneError(
                f"{folder} has no {MANIFEST_NAME}: give a folder made by `kprune build` or "
                "`kprune tokenizer`, or --profile NAME to check what it would make of this one"
            )
        yield folder
        return
    if is_overlay(folder) or is_export(folder) or base is not None:
        raise KPruneError("--profile is for a folder that is not pruned yet, without --base")
    wanted = load_profile(profile)
    with tempfile.TemporaryDirectory() as scratch:
        plan = make_tokenizer_plan(str(folder), wanted, corpora=corpora, progress=progress)
        write_overlay(plan, Path(scratch), progress)
        yield Path(scratch)


def show_law(result: LawResult) -> None:
    """Print a law, whether it holds, and the counter-example if it does not."""
    mark = "[green]holds[/]" if result.holds else "[bold red]BROKEN[/]"
    note = f" ({result.note})" if result.note else ""
    line = f"law {result.law}  {result.title}: {mark}, {result.checked:,} checked{escape(note)}"
    output_console.print(line, soft_wrap=True)
    if result.counter_example:
        output_console.print(f"       {result.counter_example}", markup=False, soft_wrap=True)
