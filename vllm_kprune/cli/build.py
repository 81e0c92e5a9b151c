"""`kprune build`: write an overlay."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer
from rich.table import Table

from vllm_kprune.checkpoint.folders import new_folder
from vllm_kprune.checkpoint.manifest import MANIFEST_NAME, Manifest
from vllm_kprune.checkpoint.overlay import Plan, make_plan, write_overlay
from vllm_kprune.cli.console import error_console, steps, write_json
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
    force: bool = typer.Option(False, "--force", help="Replace an overlay that is there already."),
    json_to: str | None = typer.Option(
        None, "--json", help="Write the figures as JSON; - prints them."
    ),
) -> None:
    """Prune a model's vocabulary to a language profile.

    Writes an overlay: a model folder with tokenizer and configuration, but without weights. Its
    kprune.json tells `vllm serve DIR --plugin kprune` which rows of the base model to load.
    """
    wanted = load_profile(profile, target_size=target_size, coverage=coverage)
    replaced = MANIFEST_NAME if force else None
    with steps() as progress, _no_collection(), new_folder(output, replaced) as folder:
        plan = make_plan(model, wanted, revision=revision, corpora=corpus, progress=progress)
        manifest = write_overlay(plan, folder, progress)
    figures = _figures(plan, manifest, output)
    if json_to:
        write_json(figures, json_to)
    if json_to != "-":
        _show(figures)


@contextmanager
def _no_collection() -> Iterator[None]:
    """Hold garbage collection: looking through millions of tokens takes a tenth of the time."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _figures(plan: Plan, manifest: Manifest, output: Path) -> dict[str, Any]:
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
        "overlay_bytes": sum(path.stat().st_size for path in output.iterdir()),
        "fingerprint": manifest.fingerprint,
    }


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
    table.add_row("overlay", f"{figures['overlay_bytes'] / 1e6:.1f} MB in {figures['output']}")
    error_console.print(table)
    error_console.print(f"next:  kprune verify {figures['output']}", markup=False)
    error_console.print(f"then:  vllm serve {figures['output']} --plugin kprune", markup=False)
