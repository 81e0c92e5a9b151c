"""`kprune inspect`: a model's vocabulary, and what a profile makes of it."""

import csv
from dataclasses import asdict, astuple, dataclass, fields, replace
from pathlib import Path

import typer
from rich.markup import escape
from rich.table import Table

from vllm_kprune.checkpoint.curve import measure_curve
from vllm_kprune.checkpoint.inspection import FamilyEvidence, Inspection, KeptToken, inspect_model
from vllm_kprune.checkpoint.sizes import Change
from vllm_kprune.cli.console import output_console, steps, write_json
from vllm_kprune.cli.cost import cost_table, show_dearest
from vllm_kprune.cli.curve import check_plot, curve_table, plot_curve
from vllm_kprune.cli.options import JsonOptions, RevisionOptions, TextOptions
from vllm_kprune.cli.typer_options import with_options
from vllm_kprune.errors import KPruneError
from vllm_kprune.options import REQUIRED, option
from vllm_kprune.profile import (
    LANGUAGES,
    CorpusOptions,
    Profile,
    Sizing,
    load_profile,
    nearest_language,
)

__all__ = ["register"]


@dataclass(frozen=True, kw_only=True)
class _Model:
    model: str = option(
        REQUIRED,
        "Folder of a model or a tokenizer, hub id, or a folder that kprune made.",
        positional=True,
    )
    profile: str | None = option(None, "Show what this profile would keep.")


@dataclass(frozen=True, kw_only=True)
class _Measured(TextOptions, Sizing, CorpusOptions):
    language: tuple[str, ...] = option(
        (),
        "Measure this language as well (zh, ja, fr, …); repeat for several.",
        choices=tuple(LANGUAGES),
        hint=nearest_language,
    )
    curve: bool = option(
        False,
        "With --profile: a table of vocabulary size against extra tokens and memory, on --text or "
        "on the profile's evidence. Takes a minute or two for a large tokenizer.",
    )

    @property
    def needs_profile(self) -> bool:
        """True if something is asked that only a profile answers."""
        return bool(self.corpora or self.curve or self.sizing)


@dataclass(frozen=True, kw_only=True)
class _Outputs(JsonOptions, RevisionOptions):
    plot: Path | None = option(None, "Draw the curve to this file (.html, .png or .svg).")
    tokens_to: Path | None = option(
        None,
        "Write every kept token to this file (TSV): ids, reason, script.",
        flags=("--tokens",),
    )


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("inspect")(with_options(_run, _Model, _Measured, _Outputs))


def _run(model: _Model, measured: _Measured, outputs: _Outputs) -> None:
    """Show a model's tokens by script and by reason, its size, and what each language pays.

    With --profile, it shows them before and after pruning, without writing anything: of the whole
    vocabulary, or of the LM head alone (vllm serve --kprune-head). Both read as few bytes in a
    decode step. Sizes count a tied LM head once. Tokens per character are measured on word lists,
    and on your own files with --text. A tokenizer without a model has no sizes in memory.
    Below the table it says what tests show for the model's family, and what is assumed.

    A second table tells how many more tokens each genre needs: chat, law, code and others, on short
    samples that come with kprune. For your own files it also names the missing tokens that cost
    most; the file as --corpus keeps them.
    """
    if model.profile is None and (measured.needs_profile or outputs.plot):
        raise KPruneError(
            "--curve, --plot, --corpus, --usage, --target-size, --coverage and --max-extra-tokens "
            "need --profile: they are about its size"
        )
    wanted = (
        None if model.profile is None else load_profile(model.profile, **measured.one_sizing("--"))
    )
    if wanted is not None and (measured.curve or outputs.plot):
        if measured.language or outputs.tokens_to:
            raise KPruneError("--curve shows sizes only: leave out --language and --tokens")
        _run_curve(model.model, wanted, measured, outputs)
        return
    with steps() as progress:
        result = inspect_model(
            model.model,
            wanted,
            revision=outputs.revision,
            corpora=measured.corpora,
            texts=measured.text,
            languages=measured.language,
            progress=progress,
        )
    if outputs.json_to:
        # Without the kept tokens, which are very many: --tokens writes those.
        write_json(asdict(replace(result, kept=())), outputs.json_to)
    if outputs.tokens_to:
        _write_tokens(result, outputs.tokens_to)
    if outputs.json_to != "-":
        _show(result)


def _run_curve(model: str, profile: Profile, measured: _Measured, outputs: _Outputs) -> None:
    if outputs.plot:
        check_plot(outputs.plot)
    with steps() as progress:
        curve = measure_curve(
            model,
            profile,
            revision=outputs.revision,
            corpora=measured.corpora,
            texts=measured.text,
            progress=progress,
        )
    if outputs.json_to:
        write_json(asdict(curve), outputs.json_to)
    if outputs.plot:
        plot_curve(curve, outputs.plot)
    if outputs.json_to != "-":
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
    table = Table(title=escape(title), title_justify="left")
    for heading in ("", "original", "pruned", "ratio"):
        table.add_column(heading, justify="left" if not heading else "right")
    _row(table, "tokens", result.tokens)
    _row(table, "parameters", result.parameters)
    _row(table, "weights, MB", result.bytes, scale=1e-6)
    _row(table, "  of them vocabulary, MB", result.vocabulary_bytes, scale=1e-6)
    if result.step_bytes and result.step_bytes.pruned:
        _row(table, "weights if the head alone is pruned, MB", result.head_bytes, scale=1e-6)
        _row(table, "read by a decode step at batch 1, MB", result.step_bytes, scale=1e-6)
        faster = result.step_bytes.original / result.step_bytes.pruned
        table.add_row("  decode speed that this predicts", "", f"× {faster:.2f}", "")
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
    if result.family:
        _show_family(result.family)
    if result.genres or result.texts:
        output_console.print(cost_table(result))
    for name, cost in result.texts.items():
        if cost.dearest:
            show_dearest(name, cost)


def _show_family(family: FamilyEvidence) -> None:
    lines = [f"{family.architecture} ({family.models})"]
    lines += [f"  shown: {one}" for one in family.shown]
    lines += [f"  assumed: {one}" for one in family.assumed]
    output_console.print("\n".join(lines), markup=False, highlight=False)


def _row(table: Table, name: str, change: Change | None, scale: float = 1, digits: int = 0) -> None:
    if change is None:
        return
    pruned, ratio = change.pruned, change.ratio
    table.add_row(
        escape(name),
        f"{change.original * scale:,.{digits}f}",
        "" if pruned is None else f"{pruned * scale:,.{digits}f}",
        "" if ratio is None else f"{ratio:.3f}",
    )
