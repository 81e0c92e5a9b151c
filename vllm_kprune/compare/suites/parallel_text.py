"""Parallel sentences in several languages: kprune's own, or files of the user.

A file is JSONL (one object per line) or TSV with a header line. It has one column for each
language, named by its code (`en`, `ko`, `zh`, ...), and optionally an `id`, unique in the file.
Other columns are ignored. A row may lack a language; it is then left out of that language's
directions. kprune's own set is small: enough to see that translation still works, but not to tell
similar models apart.
"""

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from vllm_kprune.compare.suites.jsonl import read_jsonl, text_lines
from vllm_kprune.errors import KPruneError, shown

__all__ = ["Sentence", "own_sentences", "own_shots", "read_sentences", "sentences_of", "why_none"]

_MOST_COLUMNS = 12  # named in a message
_MOST_NAMES = 1_000


@dataclass(frozen=True)
class Sentence:
    """One sentence in several languages, by language code."""

    id: str
    texts: Mapping[str, str]


def own_sentences() -> tuple[Sentence, ...]:
    """kprune's own sentences: in English and Korean, and about half of them in Chinese too."""
    return tuple(_sentence(row, row["id"]) for row in _own_rows() if "shot" not in row)


def own_shots() -> tuple[Sentence, ...]:
    """Examples for prompts of models without a chat template; none is in `own_sentences`."""
    return tuple(_sentence(row, row["id"]) for row in _own_rows() if "shot" in row)


def read_sentences(path: Path, languages: Sequence[str]) -> tuple[Sentence, ...]:
    """The rows of a file that have text in at least two of the languages."""
    rows = read_jsonl(path) if path.suffix in (".jsonl", ".json") else _tsv(path)
    found = [_sentence(row, f"{path.stem}-{number}") for number, row in rows]
    usable = [s for s in found if sum(code in s.texts for code in languages) >= 2]
    if not usable:
        raise KPruneError(
            f"{path} has no row with text in two of the languages {', '.join(languages)}; "
            f"expected a column for each, named by its code; {_columns(found)}"
        )
    return tuple(usable)


def sentences_of(paths: Sequence[Path], languages: Sequence[str]) -> list[Sentence]:
    """The rows of all files, as `read_sentences` returns them; kprune's own if there is no file."""
    if not paths:
        return list(own_sentences())
    found: dict[str, Sentence] = {}
    for path in paths:
        for sentence in read_sentences(path, languages):
            if sentence.id in found:
                raise KPruneError(
                    f"{path}: the id {sentence.id!r} occurs twice; ids must be unique"
                )
            found[sentence.id] = sentence
    return list(found.values())


def why_none(paths: Sequence[Path], sentences: Sequence[Sentence], pair: Sequence[str]) -> str:
    """Why no sentence has text in both languages of a pair, and what to do."""
    both = " and ".join(pair)
    if not paths:
        codes = ", ".join(dict.fromkeys(code for one in sentences for code in one.texts))
        return f"kprune's own sentences ({codes}) do not cover {both}; name a file (--translation)"
    return f"no row of the file has text in both {both}; {_columns(sentences)}"


def _columns(sentences: Sequence[Sentence]) -> str:
    names = [*dict.fromkeys(name for one in sentences for name in one.texts)]
    more = f" and {len(names) - _MOST_COLUMNS} more" if len(names) > _MOST_COLUMNS else ""
    return f"columns with text: {', '.join(map(shown, names[:_MOST_COLUMNS])) or 'none'}{more}"


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


def _check_header(path: Path, names: Sequence[str]) -> None:
    if len(names) > _MOST_NAMES or len(set(names)) < len(names):
        raise KPruneError(
            f"{path} has {len(names):,} columns with {len(set(names)):,} names; "
            f"expected at most {_MOST_NAMES} columns, each name once"
        )


def _tsv(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    # A quotation mark belongs to the sentence.
    reader = csv.DictReader(text_lines(path), delimiter="\t", quoting=csv.QUOTE_NONE)
    try:
        _check_header(path, reader.fieldnames or ())
        # Line 1 is the header. Cells beyond it have the name None.
        for number, row in enumerate(reader, 2):
            yield number, {name: text for name, text in row.items() if name}
    except csv.Error as error:
        raise KPruneError(f"{path}:{reader.line_num + 1} cannot be read as TSV: {error}") from None
