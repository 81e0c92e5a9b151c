"""`kprune export`: write an overlay out as a checkpoint that needs no plugin."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import typer
from rich.table import Table

from vllm_kprune.checkpoint.export import WeightsPlan, export_overlay
from vllm_kprune.checkpoint.manifest import EXPORT_NAME, load_manifest
from vllm_kprune.cli.console import error_console, steps, write_json
from vllm_kprune.cli.options import (
    BaseOptions,
    ForceOptions,
    JsonOptions,
    LinkOptions,
    VerifyOptions,
)
from vllm_kprune.cli.typer_options import with_options
from vllm_kprune.cli.verify import keep_if_lawful
from vllm_kprune.options import REQUIRED, option

__all__ = ["export_figures", "register", "show_export"]


@dataclass(frozen=True, kw_only=True)
class _Folders:
    overlay: Path = option(REQUIRED, "Folder made by `kprune build`.", positional=True)
    output: Path = option(REQUIRED, "Folder to write the checkpoint to.", flags=("--output", "-o"))


@dataclass(frozen=True, kw_only=True)
class _Outcome(JsonOptions, ForceOptions, VerifyOptions, LinkOptions, BaseOptions):
    pass


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("export")(with_options(_run, _Folders, _Outcome))


def _run(folders: _Folders, outcome: _Outcome) -> None:
    """Write a pruned model out as a standalone checkpoint.

    Plain vLLM and transformers load it without kprune. It has the overlay's tokenizer and
    configuration, and the base model's weights with only the kept rows. Weights are streamed, so
    the model need not fit into memory. kprune-export.json records where it comes from.
    """
    output, base, json_to = folders.output, outcome.base, outcome.json_to
    with steps() as progress:
        check = partial(keep_if_lawful, base=base, progress=progress) if outcome.verify else None
        weights = export_overlay(
            folders.overlay,
            output,
            base=base,
            link=outcome.link,
            force=outcome.force,
            check=check,
            progress=progress,
        )
    figures = {"output": str(output), **export_figures(weights, output)}
    if json_to:
        write_json(figures, json_to)
    if json_to != "-":
        show_export(figures)


def export_figures(weights: WeightsPlan, output: Path) -> dict[str, Any]:
    """What was written, what it was made from, and how."""
    manifest = load_manifest(output, EXPORT_NAME)
    untouched = [shard.path.name for shard in weights.untouched]
    return {
        "profile": manifest.profile.name,
        "rows": {"original": manifest.original_rows, "kept": len(manifest.kept_rows)},
        "weight_bytes": {
            "original": sum(shard.path.stat().st_size for shard in weights.shards),
            "export": sum((output / s.path.name).stat().st_size for s in weights.shards),
            "written": weights.bytes_to_write,
        },
        "shards": {
            "rewritten": [shard.path.name for shard in weights.rewritten],
            "copied": [] if weights.link else untouched,
            "linked": untouched if weights.link else [],
        },
        "fingerprint": manifest.fingerprint,
    }


def show_export(figures: dict[str, Any]) -> None:
    """Print the figures for a reader, and what to do next."""
    sizes, rows = figures["weight_bytes"], figures["rows"]
    table = Table(title="standalone checkpoint", title_justify="left", show_header=False)
    table.add_row("profile", figures["profile"])
    table.add_row("vocabulary rows", f"{rows['original']:,} → {rows['kept']:,}")
    table.add_row("weights", f"{sizes['original'] / 1e6:,.0f} → {sizes['export'] / 1e6:,.0f} MB")
    for name, shards in figures["shards"].items():
        table.add_row(f"shards {name}", f"{len(shards):,}")
    error_console.print(table)
    error_console.print(f"next:  vllm serve {figures['output']}", markup=False, soft_wrap=True)
