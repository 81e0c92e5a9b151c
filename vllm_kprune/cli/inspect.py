"""`kprune inspect`: a model's vocabulary, and what a profile makes of it."""

import csv
from dataclasses import asdict, astuple, fields, replace
from pathlib import Path

import typer
from rich.table import Table

from vllm_kprune.checkpoint.inspection import Change, Inspection, KeptToken, inspect_model
from vllm_kprune.cli.console import output_console, steps, write_json
from vllm_kprune.errors import KPruneError, nearest
from vllm_kprune.profile import LANGUAGES, load_profile

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("inspect")(_run)


def _run(
    model: str = typer.Argument(help="Model folder or hub id, or a folder made by `kprune build`."),
    profile: str | None = typer.Option(
        None, "--profile", help="Show what this profile would keep."
    ),
    corpus: list[Path] = typer.Option([], "--corpus", help="Your own evidence, as for build."),
    target_size: int | None = typer.Option(
        None, "--target-size", help="Keep exactly this many tokens."
    ),
    coverage: float | None = typer.Option(
        None, "--coverage", help="Share of the evidence to cover."
    ),
    text: list[Path] = typer.Option(
        [], "--text", help="Measure tokens per character on this file as well; repeat for several."
    ),
    language: list[str] = typer.Option(
        [], "--language", help="Measure this language as well (zh, ja, fr, …); repeat for several."
    ),
    revision: str | None = typer.Option(
        None, "--revision", help="Branch, tag or commit on the hub."
    ),
    tokens_to: Path | None = typer.Option(
        None, "--tokens", help="Write every kept token to this file (TSV): ids, reason, script."
    ),
    json_to: str | None = typer.Option(
        None, "--json", help="Write the figures as JSON; - prints them."
    ),
) -> None:
    """Show a model's tokens by script and by reason, its size, and what each language pays.

    With --profile: before and after pruning, without writing anything. Sizes count a tied LM head
    once. Tokens per character are measured on word lists, and on your files with --text.
    """
    for code in language:
        if code not in LANGUAGES:
            raise KPruneError(f"unknown language '{code}'; {nearest(code, LANGUAGES)}")
    if profile is None and (corpus or target_size or coverage):
        raise KPruneError("--corpus, --target-size and --coverage need --profile: they size it")
    wanted = None
    if profile is not None:
        wanted = load_profile(profile, target_size=target_size, coverage=coverage)
    with steps() as progress:
        result = inspect_model(
            model,
            wanted,
            revision=revision,
            corpora=corpus,
            texts=text,
            languages=language,
            progress=progress,
        )
    if json_to:
        write_json(asdict(replace(result, kept=())), json_to)
    if tokens_to:
        _write_tokens(result, tokens_to)
    if json_to != "-":
        _show(result)


def _write_tokens(result: Inspection, path: Path) -> None:
    if not result.kept:
        raise KPruneError("--tokens lists kept tokens: give --profile, or a pruned model")
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, dialect="excel-tab")
        writer.writerow([column.name for column in fields(KeptToken)])
        writer.writerows(astuple(token) for token in result.kept)


def _show(result: Inspection) -> None:
    title = result.model + (f", profile {result.profile}" if result.profile else "")
    table = Table(title=title, title_justify="left")
    for heading in ("", "original", "pruned", "ratio"):
        table.add_column(heading, justify="left" if not heading else "right")
    _row(table, "tokens", result.tokens)
    _row(table, "parameters", result.parameters)
    _row(table, "weights, MB", result.bytes, scale=1e-6)
    _row(table, "  of them vocabulary, MB", result.vocabulary_bytes, scale=1e-6)
    table.add_section()
    for script, change in result.by_script.items():
        _row(table, f"{script} tokens", change)
    table.add_section()
    for name, change in result.tokens_per_character.items():
        _row(table, f"tokens per character, {name}", change, digits=4)
    if result.by_reason:
        table.add_section()
        for reason, count in result.by_reason.items():
            table.add_row(f"kept: {reason}", "", f"{count:,}", "")
    output_console.print(table)


def _row(table: Table, name: str, change: Change, scale: float = 1, digits: int = 0) -> None:
    pruned, ratio = change.pruned, change.ratio
    table.add_row(
        name,
        f"{change.original * scale:,.{digits}f}",
        "" if pruned is None else f"{pruned * scale:,.{digits}f}",
        "" if ratio is None else f"{ratio:.3f}",
    )
