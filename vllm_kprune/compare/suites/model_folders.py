"""Find the folders of the compared models on this machine, for data that no endpoint reports.

A server's answer is untrusted input. The name that it gives its model counts as a folder only if it
is an absolute path, or a plain relative path below the current folder that contains a model.
"""

from pathlib import Path
from typing import Any

from vllm_kprune.checkpoint.cached import find_overlay
from vllm_kprune.checkpoint.manifest import is_overlay, load_manifest
from vllm_kprune.compare.endpoint.client import Client
from vllm_kprune.compare.run import Context
from vllm_kprune.errors import KPruneError, shown

__all__ = ["FolderUnknown", "model_folder"]

_LONGEST, _MOST_PARTS = 4096, 32


class FolderUnknown(KPruneError):
    """Why the folder of a model is unknown, and what to do."""


def model_folder(context: Context, side: int) -> Path:
    """The folder that a side serves, as named by the user or reported by a server on this machine.

    vLLM reports it as `root` at `/v1/models`, as it was named on the command line. If a profile was
    named as well, the server runs an overlay of that folder: it is found by its fingerprint, which
    `/kprune` tells, in kprune's cache. Raises `FolderUnknown` if there is no such folder.
    """
    fingerprint = _served_fingerprint(context.get(side, "/kprune"))
    if fingerprint is None:
        return _named_or_reported(context, side)
    endpoint = context.clients[side].endpoint
    try:
        folder = _named_or_reported(context, side)
        if is_overlay(folder) and load_manifest(folder).fingerprint == fingerprint:
            return folder
    except FolderUnknown:
        pass  # a name on the hub, say: its overlay is in the cache all the same
    if found := find_overlay(fingerprint):
        return found
    raise FolderUnknown(
        f"the {endpoint.name} server runs the overlay {fingerprint[:12]}, which is not in kprune's "
        f"cache here; name its folder with {endpoint.option}-folder"
    )


def _served_fingerprint(status: Any) -> str | None:
    """The fingerprint of the overlay that a server says it runs; None if it runs none."""
    known = status.get("fingerprint") if isinstance(status, dict) else None
    return known if isinstance(known, str) and status.get("active") is True else None


def _named_or_reported(context: Context, side: int) -> Path:
    options, client = context.options, context.clients[side]
    if named := (options.original_folder, options.pruned_folder)[side]:
        return named
    name, option = client.endpoint.name, f"{client.endpoint.option}-folder"
    root = _root(context, client)
    if root is None:
        raise FolderUnknown(f"the folder of the {name} model is unknown; name it with {option}")
    if (folder := _here(root)) is None:
        raise FolderUnknown(
            f"the {name} server calls its model {shown(root)}, which is not the folder of a model "
            f"here; name it with {option}, or start the server with an absolute path"
        )
    return folder


def _here(root: str) -> Path | None:
    """The folder of that name, if there is one; a relative one must be plain and have a model."""
    folder = Path(root)
    try:
        if folder.is_absolute():
            return folder if folder.is_dir() else None
        # An id on the hub, such as `org/model`, also looks like a relative path.
        if not folder.parts or len(folder.parts) > _MOST_PARTS or ".." in folder.parts:
            return None
        folder = Path.cwd() / folder
        return folder if (folder / "config.json").is_file() or is_overlay(folder) else None
    except OSError:  # a name that is too long, or a folder without permission
        return None


def _root(context: Context, client: Client) -> str | None:
    """The name that the server reports, kept in the journal.

    A run that is resumed after the server has stopped still knows it.
    """
    # A path on another machine may exist here, too, and hold something else.
    if not client.endpoint.is_local:
        return None
    key = f"folder of {client.endpoint.name}"
    # An empty answer is not kept, so a later run asks again.
    kept = context.journal.get("endpoints", key)
    if not kept:
        kept = _reported(context.wait(client.get("/v1/models")), client.endpoint.model)
        if kept:
            context.journal.put("endpoints", key, kept)
    return str(kept) if kept else None


def _reported(listed: Any, model: str) -> str | None:
    rows = listed.get("data") if isinstance(listed, dict) else None
    for row in rows if isinstance(rows, list) else ():
        if isinstance(row, dict) and row.get("id") == model:
            root = row.get("root")
            return root if isinstance(root, str) and _sound(root) else None
    return None


def _sound(root: str) -> bool:
    return 0 < len(root) < _LONGEST and root.isprintable()
