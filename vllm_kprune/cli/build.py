"""`kprune build`: write an overlay, or with --export a standalone checkpoint."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

from vllm_kprune.checkpoint.export import (
    REPLACED_BY_EXPORT,
    WeightsPlan,
    refuse_base,
    weights_of_plan,
    write_standalone,
)
from vllm_kprune.checkpoint.manifest import MANIFEST_NAME
from vllm_kprune.checkpoint.overlay import write_overlay
from vllm_kprune.checkpoint.plan import Plan, make_plan
from vllm_kprune.cli.console import error_console, steps, write_json
from vllm_kprune.cli.export import export_figures, show_export
from vllm_kprune.cli.options import (
    BuildOptions,
    ForceOptions,
    JsonOptions,
    LinkOptions,
    VerifyOptions,
)
from vllm_kprune.cli.pruning import no_collection, overlay_figures, pruning_figures, show_pruning
from vllm_kprune.cli.typer_options import with_options
from vllm_kprune.cli.verify import keep_if_lawful
from vllm_kprune.errors import KPruneError
from vllm_kprune.options import REQUIRED, option
from vllm_kprune.storage.folders import new_folder

__all__ = ["register"]


@dataclass(frozen=True, kw_only=True)
class _Paths:
    model: str = option(
        REQUIRED, "Folder of the base model, or its id on the model hub.", positional=True
    )
    output: Path = option(REQUIRED, "Folder to write to.", flags=("--output", "-o"))


@dataclass(frozen=True, kw_only=True)
class _Outcome(JsonOptions, ForceOptions, VerifyOptions, LinkOptions):
    export: bool = option(False, "Write a standalone checkpoint, with weights, for plain vLLM.")


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("build")(with_options(_run, _Paths, BuildOptions, _Outcome))


def _run(paths: _Paths, build: BuildOptions, outcome: _Outcome) -> None:
    """Prune a model's vocabulary to a language profile.

    Writes an overlay: a model folder with tokenizer and configuration, but without weights. Its
    kprune.json tells `vllm serve DIR --plugin kprune` which rows of the base model to load.
    With --export: a checkpoint with weights, which plain vLLM and transformers load.
    """
    model, output, json_to = paths.model, paths.output, outcome.json_to
    if outcome.link and not outcome.export:
        raise KPruneError("--link is about the weights that --export writes; an overlay has none")
    wanted = build.sized_profile()
    replaced = REPLACED_BY_EXPORT if outcome.export else MANIFEST_NAME
    weights = None
    folder_made = new_folder(output, replaced if outcome.force else None)
    with steps() as progress, folder_made as folder:
        with no_collection():
            plan = make_plan(
                model, wanted, revision=build.revision, corpora=build.corpora, progress=progress
            )
            if outcome.export:
                # Before the overlay is written: a full disk is found now, not after gigabytes.
                weights = _checked_weights(plan, output, folder, outcome.link)
            manifest = write_overlay(plan, folder, progress)
        if weights:
            write_standalone(weights, folder, progress)
        if outcome.verify:
            keep_if_lawful(folder, corpora=build.corpus, usage=build.usage, progress=progress)
    # Outside of the block: only now is the folder at `output`.
    figures = {**pruning_figures(plan, manifest, output), "vocabulary_bytes": _bytes(plan)}
    exported = export_figures(weights, output) if weights else None
    figures |= {"export": exported} if exported else overlay_figures(output)
    if json_to:
        write_json(figures, json_to)
    if json_to != "-":
        _show(figures, exported)


def _show(figures: dict[str, Any], exported: dict[str, Any] | None) -> None:
    output = figures["output"]
    show_pruning(figures)
    if exported:
        show_export({"output": output, **exported})
    else:
        error_console.print(f"next:  kprune verify {output}", markup=False)
        error_console.print(f"then:  vllm serve {output} --plugin kprune", markup=False)


def _checked_weights(plan: Plan, output: Path, folder: Path, link: bool) -> WeightsPlan:
    """What to export, checked before the long part."""
    refuse_base(output, plan.base.folder)
    weights = weights_of_plan(plan, link)
    weights.check_room(folder)
    return weights


def _bytes(plan: Plan) -> dict[str, int]:
    before = sum(info.bytes for info in plan.base.vocabulary_tensors)
    rows = sum(i < plan.base.rows for i in plan.selection.kept_ids)
    return {"original": before, "kept": round(before / plan.base.rows * rows)}
