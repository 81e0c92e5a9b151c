"""`kprune clean`: remove what killed runs have left."""

from dataclasses import dataclass
from pathlib import Path

import typer

from vllm_kprune.cli.console import output_console, write_json
from vllm_kprune.cli.options import JsonOptions
from vllm_kprune.cli.typer_options import with_options
from vllm_kprune.errors import KPruneError
from vllm_kprune.options import option
from vllm_kprune.storage.cache import cache_dir
from vllm_kprune.storage.leftovers import Leftover, find_leftovers, remove_leftover

__all__ = ["register"]


@dataclass(frozen=True, kw_only=True)
class _Where:
    folders: tuple[Path, ...] = option(
        (),
        "Folders to look in, with everything below them, such as those of outputs. Without any: "
        "kprune's cache.",
        positional=True,
        existing="folder",
        metavar="FOLDER",
    )
    dry_run: bool = option(False, "Only show what would be removed.")


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("clean")(with_options(_run, _Where, JsonOptions))


def _run(where: _Where, outputs: JsonOptions) -> None:
    """Remove what runs that were killed have left: half-written folders and files.

    What another process is writing at the moment stays, and so does the folder of a run that can be
    resumed (.NAME.unfinished). The next build of the same output does this by itself.
    """
    folders = where.folders or tuple(one for one in (cache_dir(),) if one.is_dir())
    found = {one.path: one for folder in folders for one in find_leftovers(folder.absolute())}
    done = [one for one in found.values() if where.dry_run or _removed(one)]
    if outputs.json_to:
        rows = [{"path": str(one.path), "bytes": one.num_bytes} for one in done]
        write_json({"removed": not where.dry_run, "leftovers": rows}, outputs.json_to)
    if outputs.json_to != "-":
        for one in done:
            output_console.print(f"{one.num_bytes / 1e6:8,.1f} MB  {one.path}", markup=False)
        total = sum(one.num_bytes for one in done) / 1e6
        verb = "would be removed" if where.dry_run else "removed"
        output_console.print(f"{len(done)} leftovers, {total:,.1f} MB {verb}")


def _removed(leftover: Leftover) -> bool:
    try:
        return remove_leftover(leftover)
    except OSError as error:
        raise KPruneError(f"cannot remove {leftover.path}: {error.strerror}") from error
