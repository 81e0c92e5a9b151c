"""The texts of an analysis: files of named languages, read as running text or line by line."""

from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path

from vllm_kprune.errors import KPruneError
from vllm_kprune.sparsify.calibration import (
    SHORTEST_LINE,
    identified_languages,
    parse_calibration,
    text_blocks,
)
from vllm_kprune.vocabulary.corpus import read_corpus

__all__ = ["parse_language_files", "read_lines", "read_running_text"]

_OPTION = "--text"


def parse_language_files(values: Sequence[str]) -> dict[str, list[Path]]:
    """Language -> its files, from values such as `ko=FILE`. Raises `KPruneError` for others."""
    files: dict[str, list[Path]] = {}
    for file in parse_calibration(values, _OPTION):
        if file.language is None:
            raise KPruneError(f"{_OPTION} {file.path}: say its language, as in ko={file.path}")
        files.setdefault(file.language, []).append(file.path)
    if not files:
        raise KPruneError(f"no text is given; {_OPTION} ko=FILE names one and its language")
    return files


def read_running_text(
    files: dict[str, list[Path]], characters: int, tell: Callable[[str], None]
) -> dict[str, list[str]]:
    """Language -> documents: the first characters of each file, at most so many.

    `tell` gets a warning for text that looks like another language. Raises `KPruneError` for a file
    without text.
    """
    return _each(files, lambda path: ["".join(_first(path, characters))], tell)


def read_lines(
    files: dict[str, list[Path]], count: int, tell: Callable[[str], None]
) -> dict[str, list[str]]:
    """Language -> the first lines (or JSON records) of each file that are not blank, so many."""

    def lines(path: Path) -> list[str]:
        return list(islice(filter(None, map(str.strip, read_corpus(path))), count))

    return _each(files, lines, tell)


def _each(
    files: dict[str, list[Path]], read: Callable[[Path], list[str]], tell: Callable[[str], None]
) -> dict[str, list[str]]:
    texts: dict[str, list[str]] = {}
    for language, paths in files.items():
        for path in paths:
            found = read(path)
            if not "".join(found).strip():
                raise KPruneError(f"text {path} is empty")
            lines = [one for text in found for one in text.splitlines()]
            long = [one for one in lines if len(one) >= SHORTEST_LINE]
            identified_languages(f"text {path}", language, long or lines, tell)
            texts.setdefault(language, []).extend(found)
    return texts


def _first(path: Path, characters: int) -> list[str]:
    """Blocks of a file up to a number of characters."""
    parts, left = [], characters
    for block in text_blocks(path):
        parts.append(block[:left])
        left -= len(parts[-1])
        if left <= 0:
            break
    return parts
