"""Where the compared models lie on this machine, for what no endpoint tells."""

from pathlib import Path
from typing import Any

from vllm_kprune.evaluate.compare.client import Client
from vllm_kprune.evaluate.compare.run import Context

__all__ = ["model_folders"]


def model_folders(context: Context) -> tuple[Path | None, Path | None]:
    """Folders of the original and of the pruned model: as the user named them, else as a server on
    this machine tells (vLLM's `root` of `/v1/models`); None where neither does."""
    options = context.options
    original, pruned = (
        named or _told(context, client)
        for named, client in zip(
            (options.original_folder, options.pruned_folder), context.clients, strict=True
        )
    )
    return original, pruned


def _told(context: Context, client: Client) -> Path | None:
    """Kept in the journal: a run that is continued after the server's end knows it still."""
    if not client.endpoint.is_local:
        return None
    name = client.endpoint.name
    root = context.journal.step(
        "endpoints", f"folder of {name}", lambda: context.wait(_root(client)) or ""
    )
    folder = Path(str(root))
    return folder if folder.is_absolute() and folder.is_dir() else None


async def _root(client: Client) -> str | None:
    listed: Any = await client.get("/v1/models")
    rows = listed.get("data") if isinstance(listed, dict) else None
    for row in rows if isinstance(rows, list) else ():
        if isinstance(row, dict) and row.get("id") == client.endpoint.model:
            root = row.get("root")
            return root if isinstance(root, str) and len(root) < 4096 else None
    return None
