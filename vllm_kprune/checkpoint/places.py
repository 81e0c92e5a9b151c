"""Where on this machine a base model is, for what was made from it and may be given away.

Exports, and the records of sparsified and healed models, name their base without its folder: local
paths tell about users and machines. Where it is, only kprune's cache knows, by the content of its
files. A cache that cannot be written forgets, and commands then ask for the folder.
"""

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from vllm_kprune.errors import KPruneError
from vllm_kprune.storage.bounded import Limits, read_object
from vllm_kprune.storage.cache import cache_dir, cache_folder
from vllm_kprune.storage.digest import canonical_json, digest_text
from vllm_kprune.storage.folders import new_file

__all__ = ["find_place", "public_name", "remember_place"]

_ENTRY = Limits(bytes=1 << 16, values=8)


def public_name(reference: str, folder: Path) -> str:
    """A base as a hub id, or the last part of its local folder."""
    # A relative path such as models/mine looks like a hub id. Only the hub's folders are snapshots.
    of_hub = folder.parent.name == "snapshots" and "/" in reference
    repository = f"models--{reference.replace('/', '--')}"
    if of_hub and folder.parent.parent.name == repository:
        return reference
    name = Path(reference.replace("\\", "/")).name
    return folder.name if name in ("", "..") else name


def remember_place(files: Mapping[str, str], folder: Path) -> None:
    """Note in the cache that a model of these files (SHA-256 by name) is in `folder`."""
    content = canonical_json({"folder": str(folder.absolute())})
    with suppress(KPruneError, OSError):
        name = _entry(files)
        with new_file(cache_folder("places") / name) as stream:
            stream.write(content.encode())


def find_place(recorded: str, files: Mapping[str, str]) -> Path | None:
    """The recorded folder; of a public name the folder that the cache knows. None if it is gone.

    Nobody has looked yet whether the files there are still the same.
    """
    folder = Path(recorded)
    if folder.is_absolute():
        return folder if folder.is_dir() else None
    with suppress(KPruneError, OSError):
        known = read_object(cache_dir() / "places" / _entry(files), _ENTRY).get("folder")
        if isinstance(known, str) and Path(known).is_dir():
            return Path(known)
    return None


def _entry(files: Mapping[str, str]) -> str:
    return f"{digest_text(canonical_json(dict(files)))[:32]}.json"
