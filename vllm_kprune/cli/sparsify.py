"""`kprune sparsify`: set weights of a model's decoder layers to zero."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer
from rich.table import Table

from vllm_kprune.cli.console import error_console, estimated_steps, log, write_json
from vllm_kprune.cli.options import ForceOptions, JsonOptions, RevisionOptions
from vllm_kprune.cli.typer_options import with_options
from vllm_kprune.options import REQUIRED, option
from vllm_kprune.sparsify.options import SparsifyOptions
from vllm_kprune.sparsify.run import sparsify_model

__all__ = ["register"]


@dataclass(frozen=True, kw_only=True)
class _Paths:
    model: str = option(
        REQUIRED, "Folder of the model, or its id on the model hub.", positional=True
    )
    output: Path = option(
        REQUIRED, "Folder to write the sparsified model to.", flags=("--output", "-o")
    )


@dataclass(frozen=True, kw_only=True)
class _Outcome(JsonOptions, ForceOptions, RevisionOptions):
    pass


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("sparsify")(with_options(_run, _Paths, SparsifyOptions, _Outcome))


def _run(paths: _Paths, options: SparsifyOptions, outcome: _Outcome) -> None:
    """Set half of the weights to zero, chosen by a text in your language.

    Writes an ordinary checkpoint, which vLLM and transformers load, and kprune-sparsity.json, which
    records how it was made. Embedding, head and norms stay as they are. One decoder layer is in
    memory at a time; an interrupted run goes on when the command is repeated.

    **No time is saved in vLLM 0.32**, which has no sparse kernels: it loads and multiplies zeros
    like other numbers. Only the size of the files falls, and only once they are compressed.
    """
    with estimated_steps() as progress:
        record = sparsify_model(
            paths.model,
            paths.output,
            options,
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
    table = Table(title="sparsified checkpoint", title_justify="left", show_header=False)
    table.add_row("method", f"{record['method']}, {record['pattern']}")
    table.add_row("matrices", f"{len(record['matrices']):,}")
    zeros = f"{record['zeros']:,} of {record['weights']:,} ({record['sparsity']:.1%})"
    table.add_row("zeros in them", zeros)
    error_console.print(table)
    error_console.print(f"next:  vllm serve {output}", markup=False, soft_wrap=True)
