"""Shared by `kprune build` and `kprune tokenizer`: what was pruned, in numbers."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from vllm_kprune.checkpoint.manifest import Manifest
from vllm_kprune.checkpoint.plan import TokenizerPlan
from vllm_kprune.cli.console import error_console
from vllm_kprune.cli.cost import warn_of_cost

__all__ = ["no_collection", "overlay_figures", "pruning_figures", "show_pruning"]

# A table of all would be longer than a screen; `--json` has them.
_MOST_SOURCES = 5


@contextmanager
def no_collection() -> Iterator[None]:
    """Hold garbage collection: looking through millions of tokens takes a tenth of the time."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def pruning_figures(plan: TokenizerPlan, manifest: Manifest, output: Path) -> dict[str, Any]:
    """How much was kept, and why."""
    original, kept = len(plan.base.tokenizer.tokens), len(manifest.kept_ids)
    return {
        "output": str(output),
        "profile": manifest.profile.name,
        "tokens": {"original": original, "kept": kept},
        "kept_share": round(kept / original, 4),
        "by_reason": plan.selection.by_reason(),
        "coverage": dict(plan.selection.coverage),
        "corpora": plan.own_costs(),
        "fingerprint": manifest.fingerprint,
    }


def overlay_figures(output: Path) -> dict[str, int]:
    """The size of a folder without weights, in bytes."""
    return {"overlay_bytes": sum(path.stat().st_size for path in output.iterdir())}


def show_pruning(figures: dict[str, Any]) -> None:
    """Print the figures."""
    tokens, memory = figures["tokens"], figures.get("vocabulary_bytes")
    table = Table(title=f"profile {figures['profile']}", title_justify="left", show_header=False)
    table.add_row("tokens", f"{tokens['original']:,} → {tokens['kept']:,}")
    for name, count in figures["by_reason"].items():
        table.add_row(f"  {name}", f"{count:,}")
    least_covered = sorted(figures["coverage"].items(), key=lambda found: found[1])
    for source, share in least_covered[:_MOST_SOURCES]:
        table.add_row(f"covered of {escape(source)}", f"{share:.3%}")
    if others := least_covered[_MOST_SOURCES:]:
        table.add_row(f"covered of {len(others)} others", f"at least {others[0][1]:.3%}")
    if memory:
        before, after = (f"{memory[key] / 1e6:,.0f}" for key in ("original", "kept"))
        table.add_row("vocabulary weights", f"{before} → {after} MB")
    if "overlay_bytes" in figures:
        table.add_row(
            "written", f"{figures['overlay_bytes'] / 1e6:.1f} MB in {escape(figures['output'])}"
        )
    error_console.print(table)
    warn_of_cost(figures["corpora"])
