"""`kprune heal`: train a pruned model for a short time, so that it gets back what it lost."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer
from rich.table import Table

from vllm_kprune.cli.console import error_console, estimated_steps, log, write_json
from vllm_kprune.cli.options import ForceOptions, JsonOptions, RevisionOptions
from vllm_kprune.cli.typer_options import with_options
from vllm_kprune.heal.options import HealOptions
from vllm_kprune.heal.record import PICTURE_NAME
from vllm_kprune.heal.run import heal_model
from vllm_kprune.options import REQUIRED, option

__all__ = ["register"]


@dataclass(frozen=True, kw_only=True)
class _Paths:
    model: str = option(
        REQUIRED, "Folder of the pruned model, or its id on the model hub.", positional=True
    )
    output: Path = option(
        REQUIRED, "Folder to write the healed model to.", flags=("--output", "-o")
    )
    teacher: str | None = option(
        None,
        "Folder or id of the original, whose predictions are learned from.",
        default_text="what the folder says it was made from",
    )


@dataclass(frozen=True, kw_only=True)
class _Outcome(JsonOptions, ForceOptions, RevisionOptions):
    pass


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("heal")(with_options(_run, _Paths, HealOptions, _Outcome))


def _run(paths: _Paths, options: HealOptions, outcome: _Outcome) -> None:
    """Train a pruned model for a short time, so that it gets back what it lost.

    For standalone checkpoints whose vocabulary was pruned (`kprune export`), whose weights were
    sparsified (`kprune sparsify`), or both. It learns from text in your languages and from the
    original's predictions. Zeros stay zeros. Text that is held out shows which state is kept.

    Writes an ordinary checkpoint, which vLLM and transformers load, with the same files and data
    types; kprune-heal.json records how it was made, and kprune-heal.svg shows the training. An
    interrupted run goes on when the command is repeated.
    """
    with estimated_steps() as progress:
        record = heal_model(
            paths.model,
            paths.output,
            options,
            teacher=paths.teacher,
            revision=outcome.revision,
            force=outcome.force,
            progress=progress,
            tell=lambda line: log(f"warning: {line}"),
        )
    if outcome.json_to:
        write_json({"output": str(paths.output), **record}, outcome.json_to)
    if outcome.json_to != "-":
        _show(record, paths.output)


def _show(record: dict[str, Any], output: Path) -> None:
    table = Table(title="healed checkpoint", title_justify="left", show_header=False)
    steps = f"{record['steps_done']:,} of {record['steps']:,}"
    table.add_row("steps", f"{steps} ({record['stopped']}); best at {record['best_step']:,}")
    for name, healed in record["healed"].items():
        before, after = record["start"][name], healed["bits_per_character"]
        table.add_row(
            f"bits per character, {name}", f"{before:.3f} → {after:.3f} ({after / before - 1:+.1%})"
        )
    if record["zeros"]:
        zeros, matrices = sum(record["zeros"].values()), len(record["zeros"])
        table.add_row("zeros kept", f"{zeros:,} in {matrices:,} matrices")
    error_console.print(table)
    error_console.print(f"curve: {output / PICTURE_NAME}", markup=False, soft_wrap=True)
    error_console.print(f"next:  vllm serve {output}", markup=False, soft_wrap=True)
