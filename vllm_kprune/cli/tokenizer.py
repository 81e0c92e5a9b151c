"""`kprune tokenizer`: prune a tokenizer alone."""

from dataclasses import dataclass
from pathlib import Path

import typer

from vllm_kprune.checkpoint.manifest import MANIFEST_NAME
from vllm_kprune.checkpoint.overlay import write_overlay
from vllm_kprune.checkpoint.plan import make_tokenizer_plan
from vllm_kprune.cli.console import error_console, steps, write_json
from vllm_kprune.cli.options import BuildOptions, ForceOptions, JsonOptions
from vllm_kprune.cli.pruning import no_collection, overlay_figures, pruning_figures, show_pruning
from vllm_kprune.cli.typer_options import with_options
from vllm_kprune.options import REQUIRED, option
from vllm_kprune.storage.folders import new_folder

__all__ = ["register"]


@dataclass(frozen=True, kw_only=True)
class _Folders:
    folder: str = option(
        REQUIRED, "Folder with tokenizer.json, or a model's id on the hub.", positional=True
    )
    output: Path = option(
        REQUIRED, "Folder to write the pruned tokenizer to.", flags=("--output", "-o")
    )


@dataclass(frozen=True, kw_only=True)
class _Outcome(JsonOptions, ForceOptions):
    pass


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("tokenizer")(with_options(_run, _Folders, BuildOptions, _Outcome))


def _run(folders: _Folders, build: BuildOptions, outcome: _Outcome) -> None:
    """Prune a tokenizer alone, without a model.

    FOLDER needs only tokenizer.json; token ids in the configuration files beside it are mapped.
    Weights are neither needed nor read, so the result cannot be served; `kprune build` makes a
    model that can. kprune.json lists the kept ids: the rows that a model for this tokenizer needs.
    """
    output, json_to = folders.output, outcome.json_to
    wanted = build.sized_profile()
    replaced = MANIFEST_NAME if outcome.force else None
    with steps() as progress, no_collection(), new_folder(output, replaced) as scratch:
        plan = make_tokenizer_plan(
            folders.folder,
            wanted,
            revision=build.revision,
            corpora=build.corpora,
            progress=progress,
        )
        manifest = write_overlay(plan, scratch, progress)
    figures = pruning_figures(plan, manifest, output) | overlay_figures(output)
    if json_to:
        write_json(figures, json_to)
    if json_to != "-":
        show_pruning(figures)
        error_console.print(f"next:  kprune verify {output}", markup=False)
