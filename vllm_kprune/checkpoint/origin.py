"""Does a manifest say of its base model what is so?

A manifest's fingerprint is no signature: whoever edits the file can compute it again. What the
manifest says of its base can be looked up there, and that is done wherever much depends on it.
Which tokens a profile keeps, and why, is what law 5 of `verify` repeats.
"""

from collections.abc import Iterator
from typing import Any

from vllm_kprune.checkpoint.base import (
    BaseModel,
    TokenizerFolder,
    open_base,
    open_original_tokenizer,
)
from vllm_kprune.checkpoint.manifest import Manifest
from vllm_kprune.errors import KPruneError, shown
from vllm_kprune.progress import Progress, silent

__all__ = ["base_fields", "open_described"]


def open_described(
    manifest: Manifest, path: Any = None, *, whole: bool = False, progress: Progress = silent
) -> TokenizerFolder:
    """The base of a manifest, once its files were checked and are what the manifest says.

    `path` is its folder if it was moved. With `whole`, all of its files are read; without, those
    whose size or time differs. A `BaseModel`, unless only a tokenizer was pruned. Raises
    `KPruneError`.
    """
    total = max(1, sum(digest.size for digest in manifest.base.files.values()))
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        progress("check base", min(done / total, 1.0))

    folder = manifest.check_base(path, whole=whole, advance=advance)
    base: TokenizerFolder = (
        open_original_tokenizer(folder) if manifest.tokenizer_only else open_base(folder)
    )
    for name, said, found in _differences(manifest, base):
        raise KPruneError(
            f"kprune.json says of the base {folder} that {name} is {shown(said)}, but it is "
            f"{shown(found)}; the file was edited, so build the overlay again"
        )
    return base


def base_fields(base: TokenizerFolder) -> dict[str, Any]:
    """The fields of a manifest that follow from its base alone."""
    # Ids may have gaps, so this is not the number of tokens.
    fields: dict[str, Any] = {"original_tokens": max(base.tokenizer.tokens) + 1}
    if isinstance(base, BaseModel):
        fields |= {
            "family": base.family.architecture,
            "original_rows": base.rows,
            "vocabulary_tensors": tuple(info.name for info in base.vocabulary_tensors),
        }
    return fields


def _differences(manifest: Manifest, base: TokenizerFolder) -> Iterator[tuple[str, Any, Any]]:
    """Name of a field, what the manifest says, and what is so."""
    for name, found in base_fields(base).items():
        if (said := getattr(manifest, name)) != found:
            yield name, said, found
    if (listed := sorted(manifest.base.files)) != (there := sorted(p.name for p in base.files)):
        yield "base.files", listed, there
    tokens, byte_ids = base.tokenizer.tokens, base.tokenizer.byte_ids
    for token_id, letter in zip(manifest.kept_ids, manifest.reasons, strict=True):
        if token_id not in tokens:
            yield "kept_ids", token_id, "the id of no token"
        # Byte tokens are exempt from law 3, and so nothing else may be called one.
        if (letter == "b") > (token_id in byte_ids):
            yield "reasons", f"b for {tokens[token_id]}", "no byte token"
