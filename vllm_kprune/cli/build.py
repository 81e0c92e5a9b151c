"""`kprune build`: write an overlay, or with --export a standalone checkpoint."""

from pathlib import Path
from typing import Annotated

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
from vllm_kprune.cli.verify import keep_if_lawful
from vllm_kprune.demo.servers import stops_on_sigterm
from vllm_kprune.errors import KPruneError
from vllm_kprune.storage.folders import new_folder

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("build")(_run)


def _run(
    model: Annotated[
        str, typer.Argument(help="Folder of the base model, or its id on the model hub.")
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder to write to.")],
    profile: ProfileOption = "enko",
    corpus: CorpusOption = [],  # noqa: B006 - Typer copies it
    target_size: TargetSizeOption = None,
    coverage: CoverageOption = None,
    max_extra_tokens: MaxExtraTokensOption = None,
    revision: RevisionOption = None,
    export: Annotated[
        bool,
        typer.Option(
            "--export", help="Write a standalone checkpoint, with weights, for plain vLLM."
        ),
    ] = False,
    link: Annotated[
        bool, typer.Option("--link/--copy", help="With --export: see `kprune export --help`.")
    ] = False,
    verify: Annotated[
        bool,
        typer.Option("--verify", help="Check the laws at the end; keep nothing if one is broken."),
    ] = False,
    force: ForceOption = False,
    json_to: JsonOption = None,
) -> None:
    """Prune a model's vocabulary to a language profile.

    Writes an overlay: a model folder with tokenizer and configuration, but without weights. Its
    kprune.json tells `vllm serve DIR --plugin kprune` which rows of the base model to load.
    With --export: a checkpoint with weights, which plain vLLM and transformers load.
    """
    if link and not export:
        raise KPruneError("--link is about the weights that --export writes; an overlay has none")
    wanted = sized_profile(profile, target_size, coverage, max_extra_tokens)
    replaced = REPLACED_BY_EXPORT if export else MANIFEST_NAME
    weights = None
    folder_made = new_folder(output, replaced if force else None)
    with stops_on_sigterm(), steps() as progress, folder_made as folder:
        with no_collection():
            plan = make_plan(model, wanted, revision=revision, corpora=corpus, progress=progress)
            if export:
                weights = _checked_weights(plan, output, folder, link)
            manifest = write_overlay(plan, folder, progress)
        if weights:
            write_standalone(weights, folder, progress)
        if verify:
            keep_if_lawful(folder, corpora=corpus, progress=progress)
    figures = {**pruning_figures(plan, manifest, output), "vocabulary_bytes": _bytes(plan)}
    exported = export_figures(weights, output) if weights else None
    figures |= {"export": exported} if exported else overlay_figures(output)
    if json_to:
        write_json(figures, json_to)
    if json_to == "-":
        return
    show_pruning(figures)
    if exported:
        show_export({"output": figures["output"], **exported})
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
