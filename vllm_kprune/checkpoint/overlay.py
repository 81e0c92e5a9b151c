"""Build an overlay: a model folder with a pruned tokenizer and configs, but without weights.

About 10 MB instead of a second copy of the model: `kprune.json` tells the loader which rows of the
base model's vocabulary tensors to gather. Everything is planned and checked before the long part,
and the folder appears whole or not at all.
"""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from filelock import FileLock
from tokenizers import Tokenizer

from vllm_kprune import __version__
from vllm_kprune.checkpoint.base import CONFIG_FILES, BaseModel, open_base
from vllm_kprune.checkpoint.cache import cache_dir
from vllm_kprune.checkpoint.digest import (
    canonical_json,
    digest_text,
    remembered_digest,
    sha256_file,
)
from vllm_kprune.checkpoint.folders import new_folder
from vllm_kprune.checkpoint.manifest import (
    MANIFEST_NAME,
    BaseReference,
    Evidence,
    Manifest,
    is_overlay,
    load_manifest,
)
from vllm_kprune.checkpoint.token_ids import map_ids, token_texts
from vllm_kprune.errors import KPruneError
from vllm_kprune.profile import Profile
from vllm_kprune.tokenizer.prune import IdMap, prune_tokenizer, referenced_ids
from vllm_kprune.vocabulary.evidence import Source, TokenRates, count_source, profile_sources
from vllm_kprune.vocabulary.selection import Selection, select_tokens

__all__ = [
    "Plan",
    "build_overlay",
    "cached_overlay",
    "make_plan",
    "open_base_of",
    "open_tokenizer",
    "write_overlay",
]

Progress = Callable[[str, float], None]

# Copied as they are, so that a model's licence stays with it.
_LICENCE_FILES = ("LICENSE*", "LICENCE*", "NOTICE*", "USE_POLICY*", "*TERMS*")


@dataclass(frozen=True)
class Plan:
    """What is to be kept of which model, and what it was decided on."""

    base: BaseModel
    profile: Profile
    selection: Selection
    rates: tuple[TokenRates, ...]


def build_overlay(
    model: str,
    profile: Profile,
    output: Path,
    *,
    revision: str | None = None,
    corpora: Sequence[Path] = (),
    force: bool = False,
    progress: Progress | None = None,
) -> Manifest:
    """Build an overlay of `model` (a folder or a hub id) in `output`; returns its manifest.

    A `model` that is an overlay itself is built anew from its own base. `progress` is told a step
    and its share done, from 0 to 1.
    """
    progress = progress or (lambda step, share: None)
    with new_folder(output, MANIFEST_NAME if force else None) as folder:
        plan = make_plan(model, profile, revision=revision, corpora=corpora, progress=progress)
        return write_overlay(plan, folder, progress)


def make_plan(
    model: str,
    profile: Profile,
    *,
    revision: str | None = None,
    corpora: Sequence[Path] = (),
    progress: Progress | None = None,
) -> Plan:
    """Check a model, count the evidence and select tokens; writes nothing."""
    progress = progress or (lambda step, share: None)
    sources = _sources(profile, corpora)
    progress("read model", 0.0)
    base = open_base_of(model, revision)
    tokenizer = open_tokenizer(base.folder)
    progress("read model", 1.0)
    rates = _count(base, tokenizer, sources, progress)
    progress("select tokens", 0.0)
    referenced = frozenset(_referenced_texts(base))
    selection = select_tokens(base.tokenizer, tokenizer, profile, rates, referenced)
    progress("select tokens", 1.0)
    return Plan(base, profile, selection, tuple(rates))


def open_base_of(model: str, revision: str | None) -> BaseModel:
    """The base model: of an overlay, the one that it prunes."""
    folder = Path(model).expanduser()
    if not is_overlay(folder):
        return open_base(model, revision)
    manifest = load_manifest(folder)
    base = open_base(str(manifest.check_base()))
    return replace(base, reference=manifest.base.reference, revision=manifest.base.revision)


def open_tokenizer(folder: Path) -> Tokenizer:
    """The `tokenizers` object of a model folder, without truncation or padding."""
    try:
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    except Exception as error:
        raise KPruneError(f"{folder / 'tokenizer.json'}: {error}") from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def write_overlay(plan: Plan, folder: Path, progress: Progress | None = None) -> Manifest:
    """Write tokenizer, configs and manifest of a plan into an empty folder."""
    progress = progress or (lambda step, share: None)
    progress("write overlay", 0.0)
    _write_files(plan, folder)
    progress("write overlay", 1.0)
    manifest = _manifest(plan, folder, progress).sealed()
    manifest.write(folder)
    return manifest


def cached_overlay(
    model: str,
    profile: Profile,
    *,
    revision: str | None = None,
    corpora: Sequence[Path] = (),
    progress: Progress | None = None,
) -> Path:
    """The overlay of `model` in kprune's cache, built when missing; keyed by content.

    Two processes that ask for the same one at once build it once.
    """
    sources = _sources(profile, corpora)
    base = open_base_of(model, revision)
    key = {
        "files": {p.name: remembered_digest(p, cache_dir() / "digests").sha256 for p in base.files},
        "path": str(base.folder.absolute()),  # which the manifest names
        "profile": profile.model_dump(mode="json"),
        "sources": [[source.name, source.digest] for source in sources],
        "version": __version__,
    }
    name = f"{base.folder.name}-{profile.name}-{digest_text(canonical_json(key))[:16]}"
    target = cache_dir() / "overlays" / name
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(target.parent / f".{name}.build.lock"):
        if not _is_whole(target):
            shutil.rmtree(target, ignore_errors=True)
            build_overlay(
                model,
                profile,
                target,
                revision=revision,
                corpora=corpora,
                force=target.exists(),
                progress=progress,
            )
    return target


def _is_whole(folder: Path) -> bool:
    if not is_overlay(folder):
        return False
    try:
        load_manifest(folder).check_files(folder)
    except KPruneError:
        return False
    return True


def _sources(profile: Profile, corpora: Sequence[Path]) -> list[Source]:
    if not profile.keeps_everything:
        return profile_sources(profile, corpora)
    if corpora:
        raise KPruneError(f"profile {profile.name} keeps every token: a corpus has no use with it")
    return []


def _count(
    base: BaseModel, tokenizer: Tokenizer, sources: Sequence[Source], progress: Progress
) -> list[TokenRates]:
    size = max(base.tokenizer.tokens) + 1
    rates = []
    for number, source in enumerate(sources):
        progress(f"count {source.name}", number / len(sources))
        rates.append(count_source(tokenizer, source, size))
    return rates


def _referenced_texts(base: BaseModel) -> set[str]:
    """Texts of all tokens that the model's configs, tokenizer or chat template refer to."""
    tokenizer = base.tokenizer
    ids: set[int] = set()

    def note(token_id: int, where: str) -> int:
        if token_id not in tokenizer.tokens:
            raise KPruneError(f"{where} names token id {token_id}, which the tokenizer lacks")
        ids.add(token_id)
        return token_id

    texts: set[str] = set()
    for name in CONFIG_FILES:
        path = base.folder / name
        if name == "tokenizer.json" or not path.is_file():
            continue
        if path.suffix == ".jinja":
            templates = path.read_text(encoding="utf-8", errors="replace")
        else:
            value = _without_added_tokens(base.read_config(name))
            map_ids(value, note, name)
            texts |= set(token_texts(value))
            templates = str(value.get("chat_template") or "")
        texts |= {token.content for token in tokenizer.added if token.content in templates}
    ids |= set(referenced_ids(tokenizer))
    return texts | {tokenizer.tokens[i] for i in ids}


def _without_added_tokens(value: dict[str, Any]) -> dict[str, Any]:
    return {key: item for key, item in value.items() if key != "added_tokens_decoder"}


def _write_files(plan: Plan, folder: Path) -> None:
    kept = plan.selection.kept_ids
    ids = IdMap(kept)
    for name in CONFIG_FILES:
        source = plan.base.folder / name
        if not source.is_file():
            continue
        if source.suffix == ".jinja":
            (folder / name).write_bytes(source.read_bytes())
        elif name == "tokenizer.json":
            _write_json(folder / name, prune_tokenizer(plan.base.tokenizer, kept), indent=None)
        else:
            _write_json(folder / name, _mapped_config(plan.base.read_config(name), ids, name, plan))
    for pattern in _LICENCE_FILES:
        for source in filter(Path.is_file, plan.base.folder.glob(pattern)):
            (folder / source.name).write_bytes(source.read_bytes())


def _mapped_config(value: dict[str, Any], ids: IdMap, name: str, plan: Plan) -> dict[str, Any]:
    mapped: dict[str, Any] = map_ids(_without_added_tokens(value), ids.required, name)
    if "added_tokens_decoder" in value:
        added = value["added_tokens_decoder"]
        mapped["added_tokens_decoder"] = {
            str(ids[int(old)]): token for old, token in added.items() if int(old) in ids
        }
    if name == "config.json":
        family = plan.base.family
        text = mapped[family.text_config] if family.text_config else mapped
        if plan.base.dtype and "dtype" not in text and "torch_dtype" not in text:
            text["dtype"] = plan.base.dtype  # vLLM would look it up in the weights
        text["vocab_size"] = sum(i < plan.base.rows for i in plan.selection.kept_ids)
    return mapped


def _write_json(path: Path, value: dict[str, Any], indent: int | None = 2) -> None:
    separators = (",", ":") if indent is None else None
    text = json.dumps(value, ensure_ascii=False, indent=indent, separators=separators)
    path.write_text(text + "\n", encoding="utf-8")


def _manifest(plan: Plan, folder: Path, progress: Progress) -> Manifest:
    base = plan.base
    total = sum((base.folder / shard).stat().st_size for shard in base.shards) or 1
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        progress("fingerprint weights", min(done / total, 1.0))

    return Manifest(
        kprune_version=__version__,
        family=base.family.architecture,
        profile=plan.profile,
        base=BaseReference(
            reference=base.reference,
            revision=base.revision,
            path=str(base.folder.absolute()),
            files=base.digests(advance),
        ),
        original_tokens=max(base.tokenizer.tokens) + 1,
        original_rows=base.rows,
        kept_ids=plan.selection.kept_ids,
        reasons=plan.selection.reasons,
        vocabulary_tensors=tuple(info.name for info in base.vocabulary_tensors),
        evidence=tuple(
            Evidence(source=r.source.name, digest=r.source.digest, tokens=r.tokens)
            for r in plan.rates
        ),
        files={path.name: sha256_file(path) for path in sorted(folder.iterdir())},
    )
