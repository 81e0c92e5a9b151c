"""`kprune inspect`: a model's vocabulary, and what a profile makes of it."""

import csv
from dataclasses import asdict, astuple, fields, replace
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from vllm_kprune.checkpoint.curve import measure_curve
from vllm_kprune.checkpoint.inspection import Change, Inspection, KeptToken, inspect_model
from vllm_kprune.cli.console import output_console, steps, write_json
from vllm_kprune.cli.curve import check_plot, curve_table, plot_curve
from vllm_kprune.cli.options import (
    CorpusOption,
    CoverageOption,
    JsonOption,
    MaxExtraTokensOption,
    RevisionOption,
    TargetSizeOption,
    TextOption,
    sized_profile,
)
from vllm_kprune.errors import KPruneError
from vllm_kprune.profile import LANGUAGES, Profile, nearest_language

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("inspect")(_run)


def _run(
    model: Annotated[
        str,
        typer.Argument(
            help="Folder of a model or a tokenizer, hub id, or a folder that kprune made."
        ),
    ],
    profile: Annotated[
        str | None, typer.Option("--profile", help="Show what this profile would keep.")
    ] = None,
    corpus: CorpusOption = [],  # noqa: B006 - Typer copies it
    target_size: TargetSizeOption = None,
    coverage: CoverageOption = None,
    max_extra_tokens: MaxExtraTokensOption = None,
    text: TextOption = [],  # noqa: B006 - Typer copies it
    language: Annotated[
        list[str],
        typer.Option(
            "--language",
            help="Measure this language as well (zh, ja, fr, …); repeat for several.",
        ),
    ] = [],  # noqa: B006 - Typer copies it
    curve: Annotated[
        bool,
        typer.Option(
            "--curve",
            help="With --profile: a table of vocabulary size against extra tokens and memory, on "
            "--text or on the profile's evidence. Takes a minute or two for a large tokenizer.",
        ),
    ] = False,
    plot: Annotated[
        Path | None,
        typer.Option("--plot", help="Draw the curve to this file (.html, .png or .svg)."),
    ] = None,
    revision: RevisionOption = None,
    tokens_to: Annotated[
        Path | None,
        typer.Option(
            "--tokens", help="Write every kept token to this file (TSV): ids, reason, script."
        ),
    ] = None,
    json_to: JsonOption = None,
) -> None:
    """Show a model's tokens by script and by reason, its size, and what each language pays.

    With --profile: before and after pruning, without writing anything. Sizes count a tied LM head
    once. Tokens per character are measured on word lists, and on your files with --text. A
    tokenizer without a model has no sizes in memory.
    """
    for code in language:
        if code not in LANGUAGES:
            raise KPruneError(f"unknown language '{code}'; {nearest_language(code)}")
    wanted = None
    if profile is not None:
        wanted = sized_profile(profile, target_size, coverage, max_extra_tokens)
    elif corpus or curve or plot or (target_size, coverage, max_extra_tokens) != (None, None, None):
        raise KPruneError(
            "--curve, --plot, --corpus, --target-size, --coverage and --max-extra-tokens need "
            "--profile: they are about its size"
        )
    if wanted is not None and (curve or plot):
        if language or tokens_to:
            raise KPruneError("--curve shows sizes only: leave out --language and --tokens")
        _run_curve(model, wanted, revision, corpus, text, plot, json_to)
        return
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


def _run_curve(
    model: str,
    profile: Profile,
    revision: str | None,
    corpora: list[Path],
    texts: list[Path],
    plot: Path | None,
    json_to: str | None,
) -> None:
    if plot:
        check_plot(plot)
    with steps() as progress:
        curve = measure_curve(
            model, profile, revision=revision, corpora=corpora, texts=texts, progress=progress
        )
    if json_to:
        write_json(asdict(curve), json_to)
    if plot:
        plot_curve(curve, plot)
    if json_to != "-":
        output_console.print(curve_table(curve))


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


def _row(table: Table, name: str, change: Change | None, scale: float = 1, digits: int = 0) -> None:
    if change is None:
        return
    pruned, ratio = change.pruned, change.ratio
    table.add_row(
        name,
        f"{change.original * scale:,.{digits}f}",
        "" if pruned is None else f"{pruned * scale:,.{digits}f}",
        "" if ratio is None else f"{ratio:.3f}",
    )
