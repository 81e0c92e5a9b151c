"""Compare the weights of a standalone checkpoint with those of its base, byte by byte.

This shares nothing with the code that writes them but the reader of headers, so that a mistake in
writing cannot hide. Both sides are read in blocks.
"""

import os
from collections.abc import Collection, Iterator
from pathlib import Path

from vllm_kprune.checkpoint.export import WeightsPlan
from vllm_kprune.checkpoint.model_folder import INDEX, INDEX_NAME
from vllm_kprune.checkpoint.shards import BLOCK_BYTES, RowCut, Shard, StoredTensor, read_shard
from vllm_kprune.progress import Progress, silent
from vllm_kprune.storage.bounded import read_object

__all__ = ["compare_index", "compare_weights"]


def compare_weights(
    weights: WeightsPlan,
    folder: Path,
    progress: Progress = silent,
    changed: Collection[str] = (),
) -> tuple[int, str | None]:
    """Compare every tensor, and each row of vocabulary tensors, with the base's.

    Of tensors in `changed`, which are not of the vocabulary, only type and shape are compared.
    Returns how many of the others and rows are equal, and the first difference if there is one.
    """
    checked = 0
    for number, shard in enumerate(weights.shards):
        progress("compare weights", number / len(weights.shards))
        name = shard.path.name
        if not (folder / name).is_file():
            return checked, f"{name} is missing"
        for found in _differences(shard, read_shard(folder / name), weights.cut, changed):
            if found:
                return checked, f"{name}: {found}"
            checked += 1
    return checked, None


def compare_index(weights: WeightsPlan, folder: Path) -> str | None:
    """How the index names other files than the base's does; None if it does not.

    Loaders go by it, so it can put any tensor in the place of another.
    """
    path, of_base = folder / INDEX_NAME, weights.base / INDEX_NAME
    places = {t.name: shard.path.name for shard in weights.shards for t in shard.tensors}
    if of_base.is_file():
        places = read_object(of_base, INDEX)["weight_map"]
    elif set(places.values()) == {"model.safetensors"}:
        return f"{INDEX_NAME} was added" if path.exists() else None
    if not path.is_file():
        return f"{INDEX_NAME} is missing"
    found = read_object(path, INDEX).get("weight_map")
    return None if found == places else f"{INDEX_NAME}: its weight_map is another"


def _differences(
    old: Shard, new: Shard, cut: RowCut, changed: Collection[str]
) -> Iterator[str | None]:
    """For each tensor or row that counts: None if it is equal, otherwise the difference."""
    # A hard link of --link: one file, so reading it twice would show nothing.
    if old.path.samefile(new.path):
        yield from (None for _ in old.tensors)
        return
    if old.metadata != new.metadata:
        yield f"metadata is {new.metadata}, in the base {old.metadata}"
    written = {tensor.name: tensor for tensor in new.tensors}
    if unknown := sorted(written.keys() - {tensor.name for tensor in old.tensors}):
        yield f"{unknown[0]} is not in the base"
    with old.path.open("rb") as before, new.path.open("rb") as after:
        for tensor in old.tensors:
            if tensor.name not in written:
                yield f"{tensor.name} is missing"
                continue
            pair = _StoredTwice(before.fileno(), after.fileno(), tensor, written[tensor.name])
            if tensor.name in cut.tensors:
                yield from pair.rows(cut)
            elif tensor.name in changed:
                yield from pair.shape()
            else:
                yield from pair.whole()


class _StoredTwice:
    """The same tensor in two files (given as file descriptors)."""

    def __init__(self, before: int, after: int, old: StoredTensor, new: StoredTensor) -> None:
        self._files = (before, after)
        self._old, self._new = old, new

    def shape(self) -> Iterator[str]:
        """A difference in type or shape, if there is one."""
        if found := self._unlike(self._old.shape):
            yield found

    def whole(self) -> Iterator[str | None]:
        differs = not self._same_bytes(0, 0, self._old.bytes)
        yield self._unlike(self._old.shape) or (f"{self._old.name} differs" if differs else None)

    def rows(self, cut: RowCut) -> Iterator[str | None]:
        yield self._unlike((len(cut.rows), *self._old.shape[1:]))
        # Row by row, not in runs: the writer copies runs, and its mistakes must not be shared.
        width = self._old.row_bytes
        for new_row, old_row in enumerate(cut.rows):
            same = self._same_bytes(old_row * width, new_row * width, width)
            yield None if same else f"{self._old.name}: row {new_row} is not row {old_row}"

    def _unlike(self, shape: tuple[int, ...]) -> str | None:
        expected, got = (self._old.dtype, shape), (self._new.dtype, self._new.shape)
        if expected == got:
            return None
        return f"{self._old.name} is {got[0]}{list(got[1])}, expected {expected[0]}{list(shape)}"

    def _same_bytes(self, old_offset: int, new_offset: int, count: int) -> bool:
        begins = (self._old.offset + old_offset, self._new.offset + new_offset)
        for done in range(0, count, BLOCK_BYTES):
            size = min(BLOCK_BYTES, count - done)
            old, new = (
                os.pread(file, size, begin + done)
                for file, begin in zip(self._files, begins, strict=True)
            )
            # Two files that end too early give equal blocks, hence the look at the length.
            if old != new or len(old) != size:
                return False
        return True
