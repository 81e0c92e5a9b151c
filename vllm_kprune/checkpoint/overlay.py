"""Build an overlay: a model folder with a pruned tokenizer and configs, but without weights.

About 10 MB instead of a second copy of the model: `kprune.json` tells the loader which rows of the
base model's vocabulary tensors to gather. A tokenizer alone is pruned in the same way. Everything
is planned and checked before the long part, and the folder appears whole or not at all.
"""

import json
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock
from tokenizers import Tokenizer

from vllm_kprune import __version__
from vllm_kprune.checkpoint.base import (
    CONFIG_FILES,
    BaseModel,
    TokenizerFolder,
    has_weights,
    open_base,
    open_tokenizer_folder,
)
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
from vllm_kprune.storage.cache import cache_dir
from vllm_kprune.storage.digest import (
    canonical_json,
    digest_text,
    remembered_digest,
    sha256_file,
)
from vllm_kprune.storage.folders import new_folder
from vllm_kprune.tokenizer.prune import IdMap, prune_tokenizer, referenced_ids
from vllm_kprune.vocabulary.evidence import Source, TokenRates, count_source, profile_sources
from vllm_kprune.vocabulary.selection import Selection
from vllm_kprune.vocabulary.sizing import select_tokens

__all__ = [
    "Plan",
    "TokenizerPlan",
    "build_overlay",
    "cached_overlay",
    "choose_tokens",
    "count_evidence",
    "evidence_sources",
    "make_plan",
    "make_tokenizer_plan",
    "open_any_of",
    "open_base_of",
    "open_tokenizer",
    "open_tokenizer_of",
    "write_overlay",
]

Progress = Callable[[str, float], None]
_Folder = TypeVar("_Folder", bound=TokenizerFolder)

# Copied as they are, so that a model's licence stays with it.
_LICENCE_FILES = ("LICENSE*", "LICENCE*", "NOTICE*", "USE_POLICY*", "*TERMS*")


@dataclass(frozen=True)
class TokenizerPlan:
    """What is to be kept of which tokenizer, and what it was decided on."""

    base: TokenizerFolder
    profile: Profile
    selection: Selection
    rates: tuple[TokenRates, ...]


@dataclass(frozen=True)
class Plan(TokenizerPlan):
    """A plan for a model: its weights are known."""

    base: BaseModel


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
    sources = evidence_sources(profile, corpora)
    progress("read model", 0.0)
    base = open_base_of(model, revision)
    return Plan(base, profile, *choose_tokens(base, profile, sources, progress))


def make_tokenizer_plan(
    model: str,
    profile: Profile,
    *,
    revision: str | None = None,
    corpora: Sequence[Path] = (),
    progress: Progress | None = None,
) -> TokenizerPlan:
    """The same for a tokenizer alone: weights beside it are not looked at."""
    progress = progress or (lambda step, share: None)
    sources = evidence_sources(profile, corpora)
    progress("read tokenizer", 0.0)
    base = open_tokenizer_of(model, revision)
    return TokenizerPlan(base, profile, *choose_tokens(base, profile, sources, progress))


def open_base_of(model: str, revision: str | None) -> BaseModel:
    """The base model: of an overlay, the one that it prunes."""
    return _open_original(model, revision, open_base)


def open_tokenizer_of(model: str, revision: str | None) -> TokenizerFolder:
    """The original tokenizer: of a folder that kprune made, the one that it prunes."""
    return _open_original(model, revision, open_tokenizer_folder)


def open_any_of(model: str, revision: str | None) -> TokenizerFolder:
    """The base model; the original tokenizer alone, where there are no weights."""
    folder = Path(model).expanduser()
    if is_overlay(folder):
        alone = load_manifest(folder).tokenizer_only
    else:
        alone = folder.is_dir() and not has_weights(folder)
    return open_tokenizer_of(model, revision) if alone else open_base_of(model, revision)


def _open_original(
    model: str, revision: str | None, open_folder: Callable[[str, str | None], _Folder]
) -> _Folder:
    folder = Path(model).expanduser()
    if not is_overlay(folder):
        return open_folder(model, revision)
    manifest = load_manifest(folder)
    base = open_folder(str(manifest.check_base()), None)
    return replace(base, reference=manifest.base.reference, revision=manifest.base.revision)


def evidence_sources(profile: Profile, corpora: Sequence[Path]) -> list[Source]:
    """The sources for a profile and the user's corpora; none where every token is kept."""
    if not profile.keeps_everything:
        return profile_sources(profile, corpora)
    if corpora:
        raise KPruneError(f"profile {profile.name} keeps every token: a corpus has no use with it")
    return []


def choose_tokens(
    base: TokenizerFolder, profile: Profile, sources: Sequence[Source], progress: Progress
) -> tuple[Selection, tuple[TokenRates, ...]]:
    """What a profile keeps of a tokenizer, and the evidence that it was decided on."""
    tokenizer, rates, referenced = count_evidence(base, sources, progress)
    selection = select_tokens(
        base.tokenizer,
        tokenizer,
        profile,
        rates,
        referenced,
        lambda share: progress("select tokens", share),
    )
    progress("select tokens", 1.0)
    return selection, rates


def count_evidence(
    base: TokenizerFolder, sources: Sequence[Source], progress: Progress
) -> tuple[Tokenizer, tuple[TokenRates, ...], frozenset[str]]:
    """What tokens are ranked by: the tokenizer, rates in each source, and texts referred to."""
    tokenizer = open_tokenizer(base.folder)
    referenced = frozenset(_referenced_texts(base))
    size = max(base.tokenizer.tokens) + 1
    rates = []
    with ThreadPoolExecutor(2) as pool:  # one source is read while another one is encoded
        counted = pool.map(lambda source: count_source(tokenizer, source, size), sources)
        for number, source in enumerate(sources):
            progress(f"count {source.name}", number / len(sources))
            rates.append(next(counted))
    progress("select tokens", 0.0)
    return tokenizer, tuple(rates), referenced


def open_tokenizer(folder: Path) -> Tokenizer:
    """The `tokenizers` object of a model folder, without truncation or padding."""
    try:
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    except Exception as error:
        raise KPruneError(f"{folder / 'tokenizer.json'}: {error}") from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def write_overlay(plan: TokenizerPlan, folder: Path, progress: Progress | None = None) -> Manifest:
    """Write tokenizer, configs and manifest of a plan, with weights or without, into a folder."""
    progress = progress or (lambda step, share: None)
    progress("write overlay", 0.0)
    _write_files(plan, folder)
    progress("write overlay", 1.0)
    return _manifest(plan, folder, progress).write(folder)


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
    sources = evidence_sources(profile, corpora)
    base = open_base_of(model, revision)
    key = {
        "files": {p.name: remembered_digest(p, cache_dir() / "digests").sha256 for p in base.files},
        "path": str(base.folder.absolute()),  # which the manifest names
        "profile": asdict(profile),
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


def _referenced_texts(base: TokenizerFolder) -> set[str]:
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


def _write_files(plan: TokenizerPlan, folder: Path) -> None:
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


def _mapped_config(
    value: dict[str, Any], ids: IdMap, name: str, plan: TokenizerPlan
) -> dict[str, Any]:
    mapped: dict[str, Any] = map_ids(_without_added_tokens(value), ids.required, name)
    if "added_tokens_decoder" in value:
        added = value["added_tokens_decoder"]
        mapped["added_tokens_decoder"] = {
            str(ids[int(old)]): token for old, token in added.items() if int(old) in ids
        }
    if name == "config.json":
        plan.base.fit_config(mapped, plan.selection.kept_ids)
    return mapped


def _write_json(path: Path, value: dict[str, Any], indent: int | None = 2) -> None:
    separators = (",", ":") if indent is None else None
    text = json.dumps(value, ensure_ascii=False, indent=indent, separators=separators)
    path.write_text(text + "\n", encoding="utf-8")


def _manifest(plan: TokenizerPlan, folder: Path, progress: Progress) -> Manifest:
    base = plan.base
    total = sum(path.stat().st_size for path in base.files)
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        progress("fingerprint base", min(done / total, 1.0))

    return Manifest(
        kprune_version=__version__,
        profile=plan.profile,
        base=BaseReference(
            reference=base.reference,
            revision=base.revision,
            path=str(base.folder.absolute()),
            files=base.digests(advance),
        ),
        original_tokens=max(base.tokenizer.tokens) + 1,
        kept_ids=plan.selection.kept_ids,
        reasons=plan.selection.reasons,
        evidence=tuple(
            Evidence(source=r.source.name, digest=r.source.digest, tokens=r.tokens)
            for r in plan.rates
        ),
        files={path.name: sha256_file(path) for path in sorted(folder.iterdir())},
        **_weights_facts(base),
    )


def _weights_facts(base: TokenizerFolder) -> dict[str, Any]:
    """The part of the manifest that only a model with weights has."""
    if not isinstance(base, BaseModel):
        return {}
    return {
        "family": base.family.architecture,
        "original_rows": base.rows,
        "vocabulary_tensors": tuple(info.name for info in base.vocabulary_tensors),
    }
