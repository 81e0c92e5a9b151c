"""Check the form of a `kprune.json` by hand, before pydantic sees it.

pydantic collects every error: of 60 MB of wrong ids it would make 4 GB of messages, and only the
first is shown. So what can be long is looked at here, lengths first, and up to the first mistake.
What the fields mean is checked in `manifest.py`.
"""

import itertools
from collections.abc import Callable, Collection, Mapping
from typing import Any

from vllm_kprune.errors import nearest, shown
from vllm_kprune.tokenizer.checks import MOST_TOKENS
from vllm_kprune.vocabulary.selection import REASONS

__all__ = ["check_form"]

_MOST_SOURCES = 1_000
_MOST_FILES = 10_000  # the largest published models have a few hundred shards
_MOST_TENSORS = 16
_MOST_TEXT = 4_096  # characters of a name, a path or a digest


def check_form(value: Mapping[str, Any], known: Collection[str]) -> None:
    """Raise `ValueError` for the first part of a parsed manifest that is too long or wrong.

    `known` are the names of its fields. Fields that are missing are left to pydantic.
    """
    for name, item in value.items():
        if name not in known:
            raise ValueError(f"unknown field {shown(name)}; {nearest(name[:64], known)}")
        _CHECKS.get(name, _check_small)(name, item)


def _check_small(name: str, item: Any) -> None:
    """A text, a number, or few of them."""
    if isinstance(item, str) and len(item) > _MOST_TEXT:
        raise ValueError(f"{name}: {len(item):,} characters, expected at most {_MOST_TEXT:,}")
    if isinstance(item, dict | list) and len(item) > _MOST_SOURCES:
        raise ValueError(f"{name}: {len(item):,} entries, expected at most {_MOST_SOURCES:,}")


def _check_ids(name: str, item: Any) -> None:
    _check_list(name, item, MOST_TOKENS)
    for at, token_id in enumerate(item):
        if type(token_id) is not int or not 0 <= token_id < MOST_TOKENS:
            raise ValueError(f"{name}.{at}: got {shown(token_id)}, expected a token id")
    # Positions are the new ids, and rows are cut in runs (`RowCut.runs`): both need this order.
    if any(a >= b for a, b in itertools.pairwise(item)):
        raise ValueError(f"{name} must increase")


def _check_reasons(name: str, item: Any) -> None:
    if not isinstance(item, str) or len(item) > MOST_TOKENS or not set(item) <= REASONS.keys():
        letters = ", ".join(REASONS)
        raise ValueError(f"{name}: got {shown(item)}, expected letters of {letters} for kept ids")


def _check_list(name: str, item: Any, most: int) -> None:
    if not isinstance(item, list | tuple) or len(item) > most:
        found = f"{len(item):,} entries" if isinstance(item, list) else shown(item)
        raise ValueError(f"{name}: got {found}, expected a list of at most {most:,}")


def _check_tensors(name: str, item: Any) -> None:
    _check_list(name, item, _MOST_TENSORS)
    for at, tensor in enumerate(item):
        _check_small(f"{name}.{at}", tensor)


def _check_sources(name: str, item: Any) -> None:
    _check_list(name, item, _MOST_SOURCES)
    for at, source in enumerate(item):
        _check_fields(f"{name}.{at}", source)


def _check_files(name: str, item: Any) -> None:
    if not isinstance(item, dict) or len(item) > _MOST_FILES:
        found = f"{len(item):,} files" if isinstance(item, dict) else shown(item)
        raise ValueError(f"{name}: got {found}, expected at most {_MOST_FILES:,} files by name")
    for file, digest in item.items():
        _check_small(f"{name}: {shown(file)}", file)
        _check_small(f"{name}: {shown(file)}", digest)


def _check_base(name: str, item: Any) -> None:
    _check_fields(name, item)
    if isinstance(item, dict) and "files" in item:
        _check_files(f"{name}.files", item["files"])


def _check_fields(name: str, item: Any) -> None:
    if not isinstance(item, dict) or len(item) > 16:
        raise ValueError(f"{name}: got {shown(item)}, expected a few fields")
    for field, part in item.items():
        if field != "files":
            _check_small(f"{name}.{shown(field)}", part)


_CHECKS: Mapping[str, Callable[[str, Any], None]] = {
    "kept_ids": _check_ids,
    "reasons": _check_reasons,
    "vocabulary_tensors": _check_tensors,
    "evidence": _check_sources,
    "files": _check_files,
    "base": _check_base,
    "profile": _check_fields,
}
