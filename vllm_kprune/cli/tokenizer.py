"""`kprune tokenizer`: prune a tokenizer alone."""

from pathlib import Path
from typing import Annotated

import typer

from vllm_kprune.checkpoint.manifest import MANIFEST_NAME
from vllm_kprune.checkpoint.overlay import write_overlay
from vllm_kprune.checkpoint.plan import make_tokenizer_plan
from vllm_kprune.cli.console import error_console, steps, write_json
from vllm_kprune.cli.options import (
    CorpusOption,
    CoverageOption,
    ForceOption,
    JsonOption,
    MaxExtraTokensOption,
    ProfileOption,
    RevisionOption,
    TargetSizeOption,
    sized_profile,
)
from vllm_kprune.cli.pruning import no_collection, overlay_figures, pruning_figures, show_pruning
from vllm_kprune.storage.folders import new_folder

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("tokenizer")(_run)


def _run(
    folder: Annotated[
        str, typer.Argument(help="Folder with tokenizer.json, or a model's id on the hub.")
    ],
    output: Annotated[
        Path, typer.Option("-o", "--output", help="Folder to write the pruned tokenizer to.")
    ],
    profile: ProfileOption = "enko",
    corpus: CorpusOption = [],  # noqa: B006 - Typer copies it
    target_size: TargetSizeOption = None,
    coverage: CoverageOption = None,
    max_extra_tokens: MaxExtraTokensOption = None,
    revision: RevisionOption = None,
    force: ForceOption = False,
    json_to: JsonOption = None,
) -> None:
    """Prune a tokenizer alone, without a model.

    FOLDER needs tokenizer.json only; token ids in the configuration files beside it are mapped.
    Weights are neither needed nor read, so the result cannot be served: `kprune build` makes what
    can. Its kprune.json lists the kept ids, which are the rows that a model of it needs.
    """
    wanted = sized_profile(profile, target_size, coverage, max_extra_tokens)
    replaced = MANIFEST_NAME if force else None
    with steps() as progress, no_collection(), new_folder(output, replaced) as scratch:
        plan = make_tokenizer_plan(
            folder, wanted, revision=revision, corpora=corpus, progress=progress
        )
        manifest = write_overlay(plan, scratch, progress)
    figures = pruning_figures(plan, manifest, output) | overlay_figures(output)
    if json_to:
        write_json(figures, json_to)
    if json_to != "-":
        show_pruning(figures)
        error_console.print(f"next:  kprune verify {output}", markup=False)
