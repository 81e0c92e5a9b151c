"""Symbolic links in folders from outside: where they may lead.

A link `NOTICE -> /any/file` in a model folder would have a copy of that file written beside the
pruned model. The hub's cache is made of links, so they cannot be refused altogether: a target may
be in the folder itself, or among the blobs of the same model in the hub's cache.
"""

from pathlib import Path

from vllm_kprune.errors import KPruneError, shown

__all__ = ["refuse_foreign_link"]


def refuse_foreign_link(path: Path) -> None:
    """Raise `KPruneError` if `path`, in a model's folder, is a link that leads elsewhere."""
    target, folder = path.resolve(), path.parent.resolve()
    if target.is_relative_to(folder):
        return
    # models--owner--name/snapshots/REVISION/NAME -> models--owner--name/blobs/DIGEST
    snapshots = folder.parent
    if snapshots.name == "snapshots" and target.parent == snapshots.parent / "blobs":
        return
    raise KPruneError(
        f"{path.parent / shown(path.name)[1:-1]} is a link that leads out of its folder, so it is "
        "not read; copy the file there instead"
    )
