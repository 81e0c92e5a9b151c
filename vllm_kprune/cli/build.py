"""`kprune build`: write an overlay."""

from pathlib import Path
from typing import Annotated

import typer

from vllm_kprune.checkpoint.folders import new_folder
from vllm_kprune.checkpoint.manifest import MANIFEST_NAME
from vllm_kprune.checkpoint.overlay import Plan, make_plan, write_overlay
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
from vllm_kprune.cli.pruning import no_collection, pruning_figures, show_pruning

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("build")(_run)


def _run(
    model: Annotated[
        str, typer.Argument(help="Folder of the base model, or its id on the model hub.")
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder to write the overlay to.")],
    profile: ProfileOption = "enko",
    corpus: CorpusOption = [],  # noqa: B006 - Typer copies it
    target_size: TargetSizeOption = None,
    coverage: CoverageOption = None,
    max_extra_tokens: MaxExtraTokensOption = None,
    revision: RevisionOption = None,
    force: ForceOption = False,
    json_to: JsonOption = None,
) -> None:
    """Prune a model's vocabulary to a language profile.

    Writes an overlay: a model folder with tokenizer and configuration, but without weights. Its
    kprune.json tells `vllm serve DIR --plugin kprune` which rows of the base model to load.
    """
    wanted = sized_profile(profile, target_size, coverage, max_extra_tokens)
    replaced = MANIFEST_NAME if force else None
    with steps() as progress, no_collection(), new_folder(output, replaced) as folder:
        plan = make_plan(model, wanted, revision=revision, corpora=corpus, progress=progress)
        manifest = write_overlay(plan, folder, progress)
    figures = {**pruning_figures(plan, manifest, output), "vocabulary_bytes": _bytes(plan)}
    if json_to:
        write_json(figures, json_to)
    if json_to != "-":
        show_pruning(figures)
        error_console.print(f"then:  vllm serve {output} --plugin kprune", markup=False)


def _bytes(plan: Plan) -> dict[str, int]:
    before = sum(info.bytes for info in plan.base.vocabulary_tensors)
    rows = sum(i < plan.base.rows for i in plan.selection.kept_ids)
    return {"original": before, "kept": round(before / plan.base.rows * rows)}
