"""Write a standalone checkpoint: a pruned model that plain vLLM and transformers load.

Tokenizer, configs and licences come from the overlay. The weights are the base's, shard by shard,
with only the kept rows of the vocabulary tensors. Shards without a vocabulary tensor are copied, or
hard-linked on request: a link takes no room, but editing one file in place then edits the other.
`kprune.json` becomes `kprune-export.json`, so that nothing takes the folder for an overlay.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vllm_kprune.checkpoint.manifest import (
    EXPORT_NAME,
    MANIFEST_NAME,
    Manifest,
    is_export,
    is_overlay,
    load_manifest,
)
from vllm_kprune.checkpoint.model_folder import INDEX, INDEX_NAME
from vllm_kprune.checkpoint.origin import open_described
from vllm_kprune.checkpoint.places import remember_place
from vllm_kprune.checkpoint.plan import Plan
from vllm_kprune.checkpoint.shards import (
    RowCut,
    Shard,
    copy_file,
    cut_size,
    read_shard,
    write_cut,
)
from vllm_kprune.errors import KPruneError
from vllm_kprune.progress import BytesDone, Progress, silent
from vllm_kprune.storage.bounded import read_object
from vllm_kprune.storage.folders import new_folder

__all__ = [
    "REPLACED_BY_EXPORT",
    "WeightsPlan",
    "checked_overlay",
    "export_overlay",
    "plan_weights",
    "refuse_base",
    "weights_of_overlay",
    "weights_of_plan",
    "write_standalone",
]

# An existing output folder with one of these may be replaced with --force.
REPLACED_BY_EXPORT = (EXPORT_NAME, MANIFEST_NAME)
# Tokenizer and configs take about 10 MB; the rest is margin.
_ROOM_FOR_OTHER_FILES = 64 << 20
_REPORTED_BYTES = 32 << 20


@dataclass(frozen=True)
class WeightsPlan:
    """Which files an export writes, links or copies. Made from headers alone."""

    base: Path
    cut: RowCut
    shards: tuple[Shard, ...]
    link: bool

    @property
    def rewritten(self) -> tuple[Shard, ...]:
        """Shards that hold a vocabulary tensor."""
        return tuple(shard for shard in self.shards if self.cut.touches(shard))

    @property
    def untouched(self) -> tuple[Shard, ...]:
        """Shards that stay as they are."""
        return tuple(shard for shard in self.shards if not self.cut.touches(shard))

    @property
    def bytes_to_write(self) -> int:
        """Bytes that the weights take on disk."""
        copied = () if self.link else self.untouched
        return sum(cut_size(s, self.cut) for s in self.rewritten) + sum(map(_file_size, copied))

    def check_room(self, folder: Path) -> None:
        """Raise `KPruneError` if the disk of the existing `folder` has no room for the weights."""
        needed = self.bytes_to_write + _ROOM_FOR_OTHER_FILES
        free = shutil.disk_usage(folder).free
        if free >= needed:
            return
        sharing = ", or share the unchanged shards with --link" if self._can_share else ""
        raise KPruneError(
            f"the export needs {needed / 1e9:,.2f} GB, but the disk has {free / 1e9:,.2f} GB free; "
            f"make room, or name a folder on another disk{sharing}"
        )

    @property
    def _can_share(self) -> bool:
        return bool(self.untouched) and not self.link


def export_overlay(
    overlay: str | Path,
    output: str | Path,
    *,
    base: str | Path | None = None,
    link: bool = False,
    force: bool = False,
    check: Callable[[Path], None] | None = None,
    progress: Progress = silent,
) -> WeightsPlan:
    """Write the standalone checkpoint of `overlay` to `output`, for plain vLLM and transformers.

    This is what `kprune export` does. Returns which files the weights were made from, and how.

    `base` is the folder of the base model if it was moved. With `link`, weight files that do not
    change are hard-linked instead of copied. `force` replaces an overlay or export that is at
    `output` already. `check` is called with the finished folder before it appears under its name;
    if it raises, nothing is kept.

    Raises `KPruneError` if `overlay` is not an overlay, it or its base has changed since the build,
    or the disk has no room. All of the base is read for that.

    >>> weights = export_overlay(overlay, output)
    >>> [shard.path.name for shard in weights.rewritten]
    ['model.safetensors']
    """
    overlay, output = Path(overlay), Path(output)
    manifest = checked_overlay(overlay)
    described = open_described(
        manifest, Path(base) if base else None, "--base", whole=True, progress=progress
    )
    weights = weights_of_overlay(manifest, described.folder, link)
    refuse_base(output, weights.base)
    with new_folder(output, REPLACED_BY_EXPORT if force else None) as folder:
        # `folder` is the scratch folder beside `output`, so this is the disk that will hold the
        # result.
        weights.check_room(folder)
        # Only what the manifest lists and `check_files` has read: nothing that was put there since.
        for name in (*manifest.files, MANIFEST_NAME):
            copy_file(overlay / name, folder / name)
        write_standalone(weights, folder, progress)
        if check:
            check(folder)
    return weights


def checked_overlay(folder: Path) -> Manifest:
    """The manifest of an overlay whose files nobody edited; `KPruneError` for other folders."""
    if not is_overlay(folder):
        if is_export(folder):
            raise KPruneError(
                f"{folder} is a standalone checkpoint already, so there is nothing to export"
            )
        raise KPruneError(
            f"{folder} has no {MANIFEST_NAME}; give a folder made by `kprune build`, or prune and "
            "export a model in one step with `kprune build MODEL --export`"
        )
    manifest = load_manifest(folder)
    manifest.check_files(folder)
    return manifest


def weights_of_overlay(manifest: Manifest, base: Path, link: bool = False) -> WeightsPlan:
    """What the weights of an overlay are made from. `base` is the checked folder of its base."""
    tensors = frozenset(manifest.vocabulary_tensors)
    cut = RowCut(tensors, manifest.original_rows, manifest.kept_rows)
    return plan_weights(base, manifest.weight_files, cut, link)


def weights_of_plan(plan: Plan, link: bool = False) -> WeightsPlan:
    """What the weights of a build are made from, before its overlay is written."""
    base = plan.base
    # As `Manifest.kept_rows`: a kept id without an embedding row has nothing to cut.
    kept = tuple(i for i in plan.selection.kept_ids if i < base.rows)
    tensors = frozenset(tensor.name for tensor in base.vocabulary_tensors)
    return plan_weights(base.folder, base.shards, RowCut(tensors, base.rows, kept), link)


def plan_weights(base: Path, names: Iterable[str], cut: RowCut, link: bool) -> WeightsPlan:
    """Read the headers of the base's weight files and check that the rows can be cut."""
    plan = WeightsPlan(base, cut, tuple(read_shard(base / name) for name in names), link)
    for shard in plan.rewritten:
        cut.check(shard)
    found = {tensor.name for shard in plan.shards for tensor in shard.tensors}
    if missing := sorted(cut.tensors - found):
        raise KPruneError(
            f"the base model holds no {', '.join(missing)}, which the overlay prunes; "
            "build the overlay again"
        )
    return plan


def refuse_base(output: Path, base: Path) -> None:
    """Raise `KPruneError` if the output is the folder of the weights that it is made from."""
    if output.resolve() == base.resolve():
        raise KPruneError(f"{output} is the base model itself; name another folder")


def write_standalone(plan: WeightsPlan, folder: Path, progress: Progress = silent) -> None:
    """Turn an overlay that was just written into `folder` into a standalone checkpoint."""
    advance = _in_large_steps(progress, plan.bytes_to_write)
    for shard in plan.untouched:  # first: where links are not possible, this fails at once
        if plan.link:
            _link(shard.path, folder / shard.path.name)
        else:
            copy_file(shard.path, folder / shard.path.name, advance)
    for shard in plan.rewritten:
        write_cut(shard, plan.cut, folder / shard.path.name, advance)
    # Headers are not counted, and the last step may be small, so the end is told on its own.
    progress("write weights", 1.0)
    if index := _index(plan):
        text = json.dumps(index, ensure_ascii=False, indent=2)
        (folder / INDEX_NAME).write_text(text + "\n", encoding="utf-8")
    manifest = load_manifest(folder)
    remember_place(manifest.base.contents, Path(manifest.base.path))
    manifest.without_place().write(folder)
    (folder / MANIFEST_NAME).rename(folder / EXPORT_NAME)


def _in_large_steps(progress: Progress, total: int) -> BytesDone:
    """Add up bytes and report them now and then: rows are written by the hundred thousand."""
    done = reported = 0

    def advance(count: int) -> None:
        nonlocal done, reported
        done += count
        if done - reported >= _REPORTED_BYTES:
            reported = done
            progress("write weights", min(done / total, 1.0))

    progress("write weights", 0.0)
    return advance


def _link(path: Path, target: Path) -> None:
    try:
        os.link(path.resolve(), target)  # the hub's cache holds symbolic links
    except OSError as error:
        raise KPruneError(
            f"{path} cannot be hard-linked: {error.strerror}; without --link it is copied"
        ) from None


def _index(plan: WeightsPlan) -> dict[str, Any] | None:
    """The index of the written shards. A single `model.safetensors` needs none."""
    path = plan.base / INDEX_NAME
    index = read_object(path, INDEX) if path.is_file() else None
    names = [shard.path.name for shard in plan.shards]
    if index is None and names == ["model.safetensors"]:
        return None
    # A loader finds files of other names only through an index.
    if index is None:
        places = {t.name: shard.path.name for shard in plan.shards for t in shard.tensors}
        index = {"weight_map": dict(sorted(places.items()))}
    metadata = index.get("metadata")
    sizes = _index_metadata(plan, metadata if isinstance(metadata, dict) else {})
    return {**index, "metadata": sizes}


def _index_metadata(plan: WeightsPlan, metadata: dict[str, Any]) -> dict[str, Any]:
    tensors = [tensor for shard in plan.shards for tensor in shard.tensors]
    # Tensor data without headers: what the index of a base counts, too.
    changed: dict[str, Any] = {"total_size": sum(map(plan.cut.bytes, tensors))}
    if isinstance(parameters := metadata.get("total_parameters"), int):
        changed["total_parameters"] = parameters - _removed_parameters(plan.cut, tensors)
    return {**metadata, **changed}


def _removed_parameters(cut: RowCut, tensors: Sequence[Any]) -> int:
    removed_rows = cut.original_rows - len(cut.rows)
    return sum(removed_rows * tensor.shape[1] for tensor in tensors if tensor.name in cut.tensors)


def _file_size(shard: Shard) -> int:
    return shard.path.stat().st_size
