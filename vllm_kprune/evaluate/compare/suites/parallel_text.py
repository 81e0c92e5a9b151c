"""Sentences in several languages that say the same: our own few, or files of the user.

A file is JSONL (one object a line) or TSV with a header line; one column for each language, named
by its code (`en`, `ko`, `zh`, ...), and an optional `id`, unique in the file. Other columns are
left alone. A row may lack a language; it then takes no part in that language's directions. The set
that is shipped was written for this project and is small: enough to see that translation still
works, not to tell close models apart.
"""

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from vllm_kprune.errors import KPruneError
from vllm_kprune.evaluate.compare.suites.jsonl import read_jsonl, text_lines

__all__ = ["Sentence", "own_sentences", "own_shots", "read_sentences"]


@dataclass(frozen=True)
class Sentence:
    """One sentence by language code."""

    id: str
    texts: Mapping[str, str]


def own_sentences() -> tuple[Sentence, ...]:
    """The sentences that are shipped: English and Korean, about half of them in Chinese too."""
    return tuple(_sentence(row, row["id"]) for row in _own_rows() if "shot" not in row)


def own_shots() -> tuple[Sentence, ...]:
    """Examples for models that only continue text; none of them is among `own_sentences`."""
    return tuple(_sentence(row, row["id"]) for row in _own_rows() if "shot" in row)


def read_sentences(path: Path, languages: Sequence[str]) -> tuple[Sentence, ...]:
    """The rows of a file that have text in at least two of the languages."""
    rows = read_jsonl(path) if path.suffix in (".jsonl", ".json") else _tsv(path)
    found = [_sentence(row, f"{path.stem}-{number}") for number, row in rows]
    usable = [s for s in found if sum(code in s.texts for code in languages) >= 2]
    if not usable:
        raise KPruneError(
            f"{path} has no row with text in two of the languages {', '.join(languages)}; "
            "expected one column for each, named by its code"
        )
    return tuple(usable)


def _own_rows() -> list[dict[str, Any]]:
    text = (files(__package__) / "data" / "translation.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def _sentence(row: Mapping[str, Any], name: str) -> Sentence:
    known = row.get("id")
    texts = {
        code: text.strip()
        for code, text in row.items()
        if code != "id" and isinstance(text, str) and text.strip()
    }
    return Sentence(str(known) if known not in (None, "") else name, texts)


def _tsv(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    reader = csv.DictReader(text_lines(path), delimiter="\t", quoting=csv.QUOTE_NONE)
    try:
        for number, row in enumerate(reader, 2):
            yield number, {name: text for name, text in row.items() if name}
    except csv.Error as error:
        raise KPruneError(f"{path}:{reader.line_num + 1} cannot be read as TSV: {error}") from None
