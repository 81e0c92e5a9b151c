"""The overlay of a model in kprune's cache, built when it is missing: `vllm serve` in one step.

A cache entry is named after everything that affects it: the content of the base's files, the
profile, the evidence and kprune's version. So an entry never goes stale, and a changed base gets
an entry of its own. Nothing here removes old entries.
"""

import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from filelock import FileLock

from vllm_kprune import __version__
from vllm_kprune.checkpoint.base import BaseModel, TokenizerFolder, open_original
from vllm_kprune.checkpoint.manifest import MANIFEST_NAME, Manifest, is_overlay, load_manifest
from vllm_kprune.checkpoint.overlay import digest_base, write_overlay
from vllm_kprune.checkpoint.plan import Plan, choose_tokens, evidence_sources
from vllm_kprune.errors import KPruneError
from vllm_kprune.profile import Corpus, Profile
from vllm_kprune.progress import Progress, silent
from vllm_kprune.storage.cache import cache_dir, cache_folder
from vllm_kprune.storage.digest import FileDigest, canonical_json, digest_text
from vllm_kprune.storage.folders import new_folder
from vllm_kprune.vocabulary.evidence import Source

__all__ = ["CachedOverlay", "cached_overlay", "entry_name", "find_overlay"]

_MOST_ENTRIES = 1000  # that are looked at: each manifest is read


@dataclass(frozen=True)
class CachedOverlay:
    """An overlay in the cache, and the base model that it fits.

    Both were checked: the overlay's files are those of its manifest, and the base has the content
    that the overlay was built from.
    """

    folder: Path
    manifest: Manifest
    base: BaseModel


def cached_overlay(
    model: str | Path,
    profile: Profile,
    *,
    revision: str | None = None,
    corpora: Sequence[Corpus] = (),
    progress: Progress = silent,
) -> CachedOverlay:
    """The overlay of `model` under a profile, built when it is missing or damaged.

    The base is opened once and its files are read once; digests are remembered, so later calls read
    only files that changed. Processes that ask for the same overlay at once build it once.
    """
    sources = evidence_sources(profile, corpora)
    base = open_original(model, revision)
    digests = digest_base(base, progress, memory=cache_dir() / "digests")
    # The path is recorded in the manifest.
    name = entry_name(base, profile, sources, digests, path=str(base.folder.absolute()))
    target = cache_folder("overlays") / name
    # Wider than the lock inside `new_folder`: who waited here finds the overlay ready, and does not
    # select tokens for minutes only to be told that the folder is taken.
    with FileLock(target.parent / f".{name}.build.lock"):
        manifest = _whole_manifest(target)
        if manifest is None:
            shutil.rmtree(target, ignore_errors=True)
            # If something is left there, it is replaced only if it is an overlay.
            with new_folder(target, MANIFEST_NAME if target.exists() else None) as folder:
                plan = Plan(base, profile, *choose_tokens(base, profile, sources, progress))
                manifest = write_overlay(plan, folder, progress, digests)
    # No `check_base`: the entry's name contains the digests that were just taken of these files.
    return CachedOverlay(target, manifest, base)


def find_overlay(fingerprint: str) -> Path | None:
    """The newest overlay in the cache with this fingerprint and its base in place, if any."""
    found = (path for path in (cache_dir() / "overlays").glob("[!.]*") if is_overlay(path))
    newest = sorted(found, key=lambda path: path.stat().st_mtime, reverse=True)
    for folder in newest[:_MOST_ENTRIES]:
        with suppress(KPruneError):
            manifest = load_manifest(folder)
            if manifest.fingerprint == fingerprint and Path(manifest.base.path).is_dir():
                manifest.check_files(folder)
                return folder
    return None


def entry_name(
    base: TokenizerFolder,
    profile: Profile,
    sources: Sequence[Source],
    digests: Mapping[str, FileDigest],
    **more: str,
) -> str:
    """The name of a cache entry: from everything that decides which tokens are kept, and `more`."""
    key = {
        **more,
        # Without times: a base that was only touched or copied back keeps its entry.
        "files": {name: digest.sha256 for name, digest in digests.items()},
        "profile": asdict(profile),
        "sources": [[source.name, source.digest] for source in sources],
        "version": __version__,
    }
    return f"{base.folder.name}-{profile.name}-{digest_text(canonical_json(key))[:16]}"


def _whole_manifest(folder: Path) -> Manifest | None:
    """The manifest of a complete overlay; None if there is none, or a file of it is damaged."""
    if not is_overlay(folder):
        return None
    try:
        manifest = load_manifest(folder)
        manifest.check_files(folder)
    # The cache is kprune's own, so a damaged entry is built again, not reported.
    except KPruneError:
        return None
    return manifest
