"""Write an overlay: a model folder with a pruned tokenizer and configs, but without weights.

About 10 MB instead of a second copy of the model: `kprune.json` tells the loader which rows of the
base model's vocabulary tensors to gather. A tokenizer without a model is pruned in the same way.
The folder appears complete or not at all. What is kept is decided in `checkpoint/plan.py`.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vllm_kprune import __version__
from vllm_kprune.checkpoint.base import TokenizerFolder
from vllm_kprune.checkpoint.manifest import MANIFEST_NAME, BaseReference, Evidence, Manifest
from vllm_kprune.checkpoint.model_folder import CONFIG_FILES
from vllm_kprune.checkpoint.origin import base_fields
from vllm_kprune.checkpoint.plan import TokenizerPlan, make_plan, without_added_tokens
from vllm_kprune.checkpoint.token_ids import map_ids, named_ids
from vllm_kprune.profile import Profile, as_corpora, load_profile
from vllm_kprune.progress import Progress, silent
from vllm_kprune.storage.bounded import LICENCE_BYTES, TEMPLATE_BYTES, read_bytes
from vllm_kprune.storage.digest import FileDigest, sha256_file
from vllm_kprune.storage.folders import new_folder
from vllm_kprune.storage.links import refuse_foreign_link
from vllm_kprune.tokenizer.prune import IdMap, prune_tokenizer

__all__ = ["build_overlay", "digest_base", "write_overlay"]

# Copied unchanged, so that a model's licence stays with it.
_LICENCE_FILES = ("LICENSE*", "LICENCE*", "NOTICE*", "USE_POLICY*", "*TERMS*")


def build_overlay(
    model: str | Path,
    profile: Profile | str | Path,
    output: str | Path,
    *,
    revision: str | None = None,
    corpora: Sequence[str | Path] = (),
    usage: Sequence[str | Path] = (),
    force: bool = False,
    progress: Progress = silent,
) -> Manifest:
    """Prune the vocabulary of `model` (a folder or a hub id) and write the overlay to `output`.

    This is what `kprune build` does. Returns the overlay's manifest, the content of its
    `kprune.json`: `kept_ids` are the ids of the original tokenizer that are kept.

    `profile` is a `Profile`, the name of a shipped one, or a path to a YAML file. `corpora` are
    files with text of your own, counted as evidence besides the word lists; so are `usage`, files
    with a server's token usage. `force` replaces an overlay that is at `output` already. An overlay
    as `model` is built anew from its own base.

    Raises `KPruneError` if the model cannot be pruned or `output` is taken. Nothing is kept then.

    >>> thai = Profile(name="thai", languages=("th",))
    >>> manifest = build_overlay(model, thai, output)
    >>> len(manifest.kept_ids) < manifest.original_tokens
    True
    """
    profile = profile if isinstance(profile, Profile) else load_profile(profile)
    # Opened before planning: an output that is taken is refused before the long part.
    with new_folder(Path(output), MANIFEST_NAME if force else None) as folder:
        own = as_corpora(corpora, usage)
        plan = make_plan(model, profile, revision=revision, corpora=own, progress=progress)
        return write_overlay(plan, folder, progress)


def write_overlay(
    plan: TokenizerPlan,
    folder: Path,
    progress: Progress = silent,
    digests: Mapping[str, FileDigest] | None = None,
) -> Manifest:
    """Write tokenizer, configs and manifest of a plan into an empty folder.

    `digests` are those of the base's files, if they are known; without them every file is read.
    """
    progress("write overlay", 0.0)
    _write_files(plan, folder)
    progress("write overlay", 1.0)
    known = digest_base(plan.base, progress) if digests is None else digests
    return _manifest(plan, folder, known).write(folder)


def digest_base(
    base: TokenizerFolder, progress: Progress = silent, memory: Path | None = None
) -> dict[str, FileDigest]:
    """`base.digests` with progress: weights are gigabytes."""
    total = sum(path.stat().st_size for path in base.files)
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        progress("fingerprint base", min(done / total, 1.0))

    return base.digests(advance, memory)


def _write_files(plan: TokenizerPlan, folder: Path) -> None:
    kept = plan.selection.kept_ids
    ids = IdMap(kept)
    for name in CONFIG_FILES:
        source = plan.base.folder / name
        if not source.is_file():
            continue
        if source.suffix == ".jinja":
            (folder / name).write_bytes(read_bytes(source, TEMPLATE_BYTES))
        elif name == "tokenizer.json":
            # Indented, this file would have a line for each of hundreds of thousands of merges.
            _write_json(folder / name, prune_tokenizer(plan.base.tokenizer, kept), indent=None)
        else:
            _write_json(folder / name, _mapped_config(plan.base.read_config(name), ids, name, plan))
    for pattern in _LICENCE_FILES:
        for source in filter(Path.is_file, plan.base.folder.glob(pattern)):
            refuse_foreign_link(source)
            (folder / source.name).write_bytes(read_bytes(source, LICENCE_BYTES))


def _mapped_config(
    value: dict[str, Any], ids: IdMap, name: str, plan: TokenizerPlan
) -> dict[str, Any]:
    mapped: dict[str, Any] = map_ids(without_added_tokens(value), ids.required, name)
    if "added_tokens_decoder" in value:
        # Here the ids are the keys, as text, where `map_ids` does not look. Dropped tokens leave.
        added = named_ids(value["added_tokens_decoder"], f"{name}: added_tokens_decoder")
        mapped["added_tokens_decoder"] = {
            str(ids[old]): token for old, token in added.items() if old in ids
        }
    if name == "config.json":
        # vocab_size is a number of rows, not an id, so `map_ids` left it alone.
        plan.base.fit_config(mapped, plan.selection.kept_ids)
    return mapped


def _write_json(path: Path, value: dict[str, Any], indent: int | None = 2) -> None:
    separators = (",", ":") if indent is None else None
    text = json.dumps(value, ensure_ascii=False, indent=indent, separators=separators)
    path.write_text(text + "\n", encoding="utf-8")


def _manifest(plan: TokenizerPlan, folder: Path, digests: Mapping[str, FileDigest]) -> Manifest:
    base = plan.base
    return Manifest(
        kprune_version=__version__,
        profile=plan.profile,
        base=BaseReference(
            reference=base.reference,
            revision=base.revision,
            path=str(base.folder.absolute()),
            files=dict(digests),
        ),
        kept_ids=plan.selection.kept_ids,
        reasons=plan.selection.reasons,
        evidence=tuple(
            Evidence(source=r.source.name, digest=r.source.digest, tokens=r.tokens)
            for r in plan.rates
        ),
        # kprune.json is not there yet: it has a fingerprint of its own.
        files={path.name: sha256_file(path) for path in sorted(folder.iterdir())},
        **base_fields(base),
    )
