"""The spellings of a model's tokenizer, cached on disk.

Reading and spelling a large `tokenizer.json` takes a second, which every start would pay. The cache
has one uncompressed NumPy file for each version of the format and content of `tokenizer.json` and
of what shows control tokens (`guard/controls.py`). No pickle is read or written. A file appears
complete or not at all, a damaged one is made again, and only the newest few are kept.
"""

import hashlib
import logging
import zipfile
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args

import numpy as np
import numpy.typing as npt

from vllm_kprune.errors import KPruneError
from vllm_kprune.guard.controls import read_evidence
from vllm_kprune.guard.tokens import TokenSpellings, spell_tokens
from vllm_kprune.storage.digest import sha256_file
from vllm_kprune.storage.folders import new_file
from vllm_kprune.tokenizer.bpe import TokenKind, read_tokenizer

__all__ = ["TokenSpellings", "load_spellings"]

# A part of the file's name, so that another version of kprune does not read its files.
_FORMAT = 2
_MOST_FILES = 8
_MOST_BYTES = 256 << 20
_DTYPES = {
    "spelled": np.uint8,
    "starts": np.int32,
    "code_points": np.uint32,
    "code_starts": np.int32,
    "head_lengths": np.uint8,
    "tail_lengths": np.uint8,
    "flags": np.uint8,
}
_log = logging.getLogger(__name__)


def load_spellings(folder: str | Path, cache: Path | None = None) -> TokenSpellings:
    """What each token of `folder/tokenizer.json` spells; `build_automaton` needs it.

    With a folder `cache`, the result is read from there, or kept there for the next call; a cache
    that cannot be read or written is only logged. Raises `KPruneError` for a tokenizer whose
    decoder is not understood.

    >>> spellings = load_spellings(model)
    >>> spellings.bytes_of(byte_id["<0xED>"])
    b'\\xed'
    """
    folder = Path(folder)
    path = folder / "tokenizer.json"
    evidence = read_evidence(folder)
    if cache is None or not path.is_file():
        return spell_tokens(read_tokenizer(folder), evidence)
    try:
        content = sha256_file(path)
    except OSError as error:
        raise KPruneError(f"{path} is not readable: {error.strerror}") from None
    digest = hashlib.sha256(f"{content} {evidence.digest}".encode()).hexdigest()
    kept = cache / f"spellings-{_FORMAT}-{digest[:32]}.npz"
    found = _read(kept)
    if found is None:
        found = spell_tokens(read_tokenizer(folder), evidence)
        _write(found, kept)
    return found


def _read(path: Path) -> TokenSpellings | None:
    """The content of a cache file; None if it is missing or damaged."""
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise ValueError("the file is too large")
        # NumPy leaves a file open that it opened and found damaged.
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
            return _checked({name: arrays[name] for name in ("kind", *_DTYPES)})
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        _log.warning("kprune guard: %s is damaged and is made again (%s)", path, error)
        return None


def _checked(arrays: dict[str, npt.NDArray[Any]]) -> TokenSpellings:
    """Turn arrays into a value; ValueError if they do not belong together."""
    kind = str(arrays.pop("kind"))
    num_tokens = len(arrays["flags"])
    lengths = {"starts": num_tokens + 1, "code_starts": num_tokens + 1}
    lengths |= dict.fromkeys(("head_lengths", "tail_lengths"), num_tokens)
    # Functions, because later checks rely on earlier ones: each runs only if those before it hold.
    checks: list[Callable[[], bool]] = [
        lambda: kind in get_args(TokenKind),
        lambda: all(arrays[name].dtype == dtype for name, dtype in _DTYPES.items()),
        lambda: all(array.ndim == 1 for array in arrays.values()),
        lambda: all(len(arrays[name]) == length for name, length in lengths.items()),
        lambda: _covers(arrays["starts"], arrays["spelled"]),
        lambda: _covers(arrays["code_starts"], arrays["code_points"]),
        lambda: not len(arrays["code_points"]) or int(arrays["code_points"].max()) < 0x110000,
        lambda: max(arrays["head_lengths"].max(), arrays["tail_lengths"].max()) <= 3,
    ]
    if num_tokens == 0 or not all(check() for check in checks):
        raise ValueError("its arrays do not belong together")
    return TokenSpellings(kind=kind, **arrays)  # type: ignore[arg-type]


def _covers(starts: npt.NDArray[np.int32], parts: npt.NDArray[Any]) -> bool:
    return bool(starts[0] == 0 and starts[-1] == len(parts) and (np.diff(starts) >= 0).all())


def _write(spellings: TokenSpellings, path: Path) -> None:
    arrays = {field.name: np.asarray(getattr(spellings, field.name)) for field in fields(spellings)}
    try:
        with new_file(path) as stream:
            np.savez(stream, allow_pickle=False, **arrays)
        _forget_oldest(path)
    except OSError as error:
        _log.warning("kprune guard: no cache for the next start: cannot write %s (%s)", path, error)


def _forget_oldest(written: Path) -> None:
    others = [path for path in written.parent.glob("spellings-*.npz") if path != written]
    newest_first = sorted(others, key=lambda path: path.stat().st_mtime_ns, reverse=True)
    # - 1 for the file just written.
    for path in newest_first[_MOST_FILES - 1 :]:
        path.unlink(missing_ok=True)
