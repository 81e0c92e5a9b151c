"""`kprune build`: write an overlay, or with --export a standalone checkpoint."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer
from rich.table import Table

from vllm_kprune.checkpoint.export import (
    REPLACED_BY_EXPORT,
    WeightsPlan,
    refuse_base,
    weights_of_plan,
    write_standalone,
)
from vllm_kprune.checkpoint.folders import new_folder
from vllm_kprune.checkpoint.manifest import MANIFEST_NAME, Manifest
from vllm_kprune.checkpoint.overlay import Plan, make_plan, write_overlay
from vllm_kprune.cli.console import error_console, steps, write_json
from vllm_kprune.cli.export import export_figures, show_export
from vllm_kprune.cli.verify import keep_if_lawful
from vllm_kprune.errors import KPruneError
from vllm_kprune.evaluate.servers import stops_on_sigterm
from vllm_kprune.profile import load_profile

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("build")(_run)


def _run(
    model: str = typer.Argument(help="Folder of the base model, or its id on the model hub."),
    output: Path = typer.Option(..., "-o", "--output", help="Folder to write the overlay to."),
    profile: str = typer.Option(
        "enko", "--profile", help="Profile by name (enko, original), or your own .yaml file."
    ),
    corpus: list[Path] = typer.Option(
        [], "--corpus", help="Your own text (.txt, .jsonl, also .gz or .zst); repeat for several."
    ),
    target_size: int | None = typer.Option(
        None, "--target-size", help="Keep exactly this many tokens."
    ),
    coverage: float | None = typer.Option(
        None, "--coverage", help="Keep tokens until this share of the evidence is covered (0.999)."
    ),
    revision: str | None = typer.Option(
        None, "--revision", help="Branch, tag or commit on the hub."
    ),
    export: bool = typer.Option(
        False, "--export", help="Write a standalone checkpoint, with weights, for plain vLLM."
    ),
    link: bool = typer.Option(
        False, "--link/--copy", help="With --export: see `kprune export --help`."
    ),
    verify: bool = typer.Option(
        False, "--verify", help="Check the laws at the end; keep nothing if one is broken."
    ),
    force: bool = typer.Option(
        False,
        "--force",
        help="Replace an overlay that is there already (with --export: or an export).",
    ),
    json_to: str | None = typer.Option(
        None, "--json", help="Write the figures as JSON; - prints them."
    ),
) -> None:
    """Prune a model's vocabulary to a language profile.

    Writes an overlay: a model folder with tokenizer and configuration, but without weights. Its
    kprune.json tells `vllm serve DIR --plugin kprune` which rows of the base model to load.
    With --export: a checkpoint with weights, which plain vLLM and transformers load.
    """
    if link and not export:
        raise KPruneError("--link is about the weights that --export writes; an overlay has none")
    wanted = load_profile(profile, target_size=target_size, coverage=coverage)
    replaced = REPLACED_BY_EXPORT if export else MANIFEST_NAME
    weights = None
    folder_made = new_folder(output, replaced if force else None)
    with stops_on_sigterm(), steps() as progress, folder_made as folder:
        with _no_collection():
            plan = make_plan(model, wanted, revision=revision, corpora=corpus, progress=progress)
            if export:
                weights = _checked_weights(plan, output, folder, link)
            manifest = write_overlay(plan, folder, progress)
        if weights:
            write_standalone(weights, folder, progress)
        if verify:
            keep_if_lawful(folder, corpora=corpus, progress=progress)
    figures = _figures(plan, manifest, output, weights)
    if json_to:
        write_json(figures, json_to)
    if json_to != "-":
        _show(figures)


def _checked_weights(plan: Plan, output: Path, folder: Path, link: bool) -> WeightsPlan:
    """What to export, checked before the long part."""
    refuse_base(output, plan.base.folder)
    weights = weights_of_plan(plan, link)
    weights.check_room(folder)
    return weights


@contextmanager
def _no_collection() -> Iterator[None]:
    """Hold garbage collection: looking through millions of tokens takes a tenth of the time."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _figures(
    plan: Plan, manifest: Manifest, output: Path, weights: WeightsPlan | None
) -> dict[str, Any]:
    tensors = plan.base.vocabulary_tensors
    before = sum(info.bytes for info in tensors)
    row_bytes = before / plan.base.rows
    return {
        "output": str(output),
        "profile": manifest.profile.name,
        "tokens": {"original": len(plan.base.tokenizer.tokens), "kept": len(manifest.kept_ids)},
        "kept_share": round(len(manifest.kept_ids) / len(plan.base.tokenizer.tokens), 4),
        "by_reason": plan.selection.by_reason(),
        "coverage": dict(plan.selection.coverage),
        "vocabulary_bytes": {
            "original": before,
            "kept": round(row_bytes * len(manifest.kept_rows)),
        },
        **({"export": export_figures(weights, output)} if weights else _overlay_figures(output)),
        "fingerprint": manifest.fingerprint,
    }


def _overlay_figures(output: Path) -> dict[str, int]:
    return {"overlay_bytes": sum(path.stat().st_size for path in output.iterdir())}


def _show(figures: dict[str, Any]) -> None:
    tokens, memory = figures["tokens"], figures["vocabulary_bytes"]
    table = Table(title=f"profile {figures['profile']}", title_justify="left", show_header=False)
    table.add_row("tokens", f"{tokens['original']:,} → {tokens['kept']:,}")
    for name, count in figures["by_reason"].items():
        table.add_row(f"  {name}", f"{count:,}")
    for source, share in figures["coverage"].items():
        table.add_row(f"covered of {source}", f"{share:.3%}")
    table.add_row(
        "vocabulary weights", f"{memory['original'] / 1e6:,.0f} → {memory['kept'] / 1e6:,.0f} MB"
    )
    if "overlay_bytes" in figures:
        table.add_row("overlay", f"{figures['overlay_bytes'] / 1e6:.1f} MB in {figures['output']}")
    error_console.print(table)
    if "export" in figures:
        show_export({"output": figures["output"], **figures["export"]})
        return
    error_console.print(f"next:  kprune verify {figures['output']}", markup=False)
    error_console.print(f"then:  vllm serve {figures['output']} --plugin kprune", markup=False)
