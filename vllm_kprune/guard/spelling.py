"""The spellings of a model's tokenizer, cached on disk.

Reading and spelling a large `tokenizer.json` takes a second, which every start would pay. The cache
has one uncompressed NumPy file for each version of the format and content of `tokenizer.json` and
of what shows control tokens (`guard/controls.py`). No pickle is read or written. A file appears
complete or not at all, a damaged one is made again, and only the newest few are kept.
"""

import hashlib
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args

import numpy as np
import numpy.typing as npt

from vllm_kprune.errors import KPruneError
from vllm_kprune.guard.array_files import Arrays, read_arrays, write_arrays
from vllm_kprune.guard.controls import read_evidence
from vllm_kprune.guard.tokens import TokenSpellings, spell_tokens
from vllm_kprune.storage.digest import sha256_file
from vllm_kprune.tokenizer.bpe import TokenKind, read_tokenizer

__all__ = ["TokenSpellings", "load_spellings"]

# A part of the file's name, so that another version of kprune does not read its files.
_FORMAT = 2
_MOST_FILES = 8
_DTYPES = {
    "spelled": np.uint8,
    "starts": np.int32,
    "code_points": np.uint32,
    "code_starts": np.int32,
    "head_lengths": np.uint8,
    "tail_lengths": np.uint8,
    "flags": np.uint8,
}


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
    found = read_arrays(kept, ("kind", *_DTYPES), _checked)
    if found is None:
        found = spell_tokens(read_tokenizer(folder), evidence)
        arrays = {field.name: np.asarray(getattr(found, field.name)) for field in fields(found)}
        write_arrays(kept, arrays, _MOST_FILES)
    return found


def _checked(arrays: Arrays) -> TokenSpellings:
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
