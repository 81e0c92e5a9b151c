"""Files that nobody recorded: added to a folder that kprune made, or to its base model.

Digests show that a listed file was edited. What was added has none, and can do as much: an index
redirects tensors to other files, a chat template or a tokenizer in another format takes the place
of the one that was pruned. Documents and pictures stay possible, since no program reads them.
"""

from collections.abc import Collection, Iterator
from pathlib import Path

from vllm_kprune.checkpoint.model_folder import CONFIG_FILES, INDEX_NAME, unindexed_weight_files
from vllm_kprune.errors import KPruneError, shown

__all__ = ["refuse_added", "refuse_added_to_base"]

_DOCUMENTS = frozenset({".jpeg", ".jpg", ".md", ".pdf", ".png", ".svg"})


def refuse_added(folder: Path, listed: Collection[str]) -> None:
    """Raise `KPruneError` for an entry of a folder that is neither `listed` nor a document."""
    for path in sorted(folder.iterdir()):
        if path.name not in listed and not _is_harmless(path):
            raise _added(folder / shown(path.name)[1:-1])


def _added(path: Path) -> KPruneError:
    return KPruneError(
        f"{path} was added since the overlay was built; move it away, or build the overlay again"
    )


def _is_harmless(path: Path) -> bool:
    # Hidden ones are those of git, of the hub and of editors.
    return path.name.startswith(".") or path.suffix.lower() in _DOCUMENTS


def refuse_added_to_base(folder: Path, recorded: Collection[str], *, weights: bool) -> None:
    """Raise `KPruneError` for a file of a base that affects an overlay, but is not `recorded`.

    With `weights`, an index and further weight files count as well: loaders go by them.
    """
    for name in _that_count(folder, recorded, weights):
        if name not in recorded and (folder / name).is_file():
            raise _added(folder / name)


def _that_count(folder: Path, recorded: Collection[str], weights: bool) -> Iterator[str]:
    yield from CONFIG_FILES
    if weights:
        yield INDEX_NAME
        # With an index, files that it does not name are nobody's.
        if INDEX_NAME not in recorded:
            yield from unindexed_weight_files(folder)
