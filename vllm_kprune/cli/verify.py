"""`kprune verify`: check the laws of a pruned model on the user's own text."""

import itertools
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import typer
from rich.markup import escape

from vllm_kprune.checkpoint.manifest import MANIFEST_NAME, is_export, is_overlay
from vllm_kprune.checkpoint.overlay import write_overlay
from vllm_kprune.checkpoint.plan import make_tokenizer_plan
from vllm_kprune.checkpoint.verify import LawResult, verify_overlay
from vllm_kprune.cli.console import output_console, say_error, steps, write_json
from vllm_kprune.cli.options import BaseOptions, JsonOptions, TextOptions
from vllm_kprune.cli.typer_options import with_options
from vllm_kprune.errors import KPruneError
from vllm_kprune.options import REQUIRED, option
from vllm_kprune.profile import CorpusOptions, load_profile
from vllm_kprune.progress import Progress
from vllm_kprune.vocabulary.corpus import read_corpus

__all__ = ["keep_if_lawful", "register", "show_law"]


@dataclass(frozen=True, kw_only=True)
class _Options(JsonOptions, BaseOptions, CorpusOptions):
    profile: str | None = option(
        None,
        "FOLDER is not pruned yet: check what this profile would make of its tokenizer.",
    )
    corpus: tuple[Path, ...] = option(
        (), "The corpora that it was built with, to repeat the selection as well."
    )
    usage: tuple[Path, ...] = option((), "The usage files that it was built with, likewise.")


@dataclass(frozen=True, kw_only=True)
class _Subject(TextOptions):
    folder: Path = option(
        REQUIRED, "Folder made by `kprune build`, `export` or `tokenizer`.", positional=True
    )


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("verify")(with_options(_run, _Subject, _Options))


def _run(subject: _Subject, options: _Options) -> None:
    """Check that a pruned model's tokenizer keeps its promises, on your own text.

    It checks laws 1 (text whose tokens are kept is encoded as before), 2 (nothing is lost), 3 (no
    dead rows), 5 (building again gives the same files) and 6 (every id is mapped). For a folder
    made by `kprune export` it also checks that the weights are the base's, bit for bit. If a law is
    broken, it shows the first counter-example and exits with 1. Without --text, the languages' word
    lists are used.
    """
    for path in subject.text:
        if not path.is_file():
            raise KPruneError(f"text {path} does not exist or is not a file")
    # A stream: files are read while they are checked, so their size does not matter.
    lines = itertools.chain.from_iterable(map(read_corpus, subject.text)) if subject.text else None
    with steps() as progress, _pruned(subject.folder, options, progress) as pruned:
        results = verify_overlay(
            pruned,
            lines,
            corpora=options.corpus,
            usage=options.usage,
            base=options.base,
            progress=progress,
        )
    if options.json_to:
        laws = [{**asdict(result), "holds": result.holds} for result in results]
        write_json(laws, options.json_to)
    if options.json_to != "-":
        for result in results:
            show_law(result)
    if not all(result.holds for result in results):
        raise typer.Exit(1)


def keep_if_lawful(
    folder: Path,
    *,
    corpora: Sequence[Path] = (),
    usage: Sequence[Path] = (),
    base: Path | None = None,
    progress: Progress,
) -> None:
    """Check a folder that is being made. If a law is broken, say which, and exit with 1."""
    results = verify_overlay(folder, corpora=corpora, usage=usage, base=base, progress=progress)
    # The exit leaves the caller's `new_folder` block, which removes what was made.
    if broken := [result for result in results if not result.holds]:
        for result in broken:
            show_law(result)
        say_error(
            "a law is broken, so nothing was kept (without --verify it is); please report this"
        )
        raise typer.Exit(1)


@contextmanager
def _pruned(folder: Path, options: _Options, progress: Progress) -> Iterator[Path]:
    """The pruned folder to check: `folder` itself, or its tokenizer pruned for a profile."""
    is_pruned = is_overlay(folder) or is_export(folder)
    if options.profile is None:
        if not is_pruned:
            raise KPruneError(
                f"{folder} has no {MANIFEST_NAME}: give a folder made by `kprune build` or "
                "`kprune tokenizer`, or --profile NAME to check what it would make of this one"
            )
        yield folder
        return
    if is_pruned or options.base is not None:
        raise KPruneError("--profile is for a folder that is not pruned yet, without --base")
    wanted = load_profile(options.profile)
    with tempfile.TemporaryDirectory() as scratch:
        plan = make_tokenizer_plan(str(folder), wanted, corpora=options.corpora, progress=progress)
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
