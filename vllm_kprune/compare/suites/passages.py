"""Passages with a question and its gold answer: kprune's own, or those of a user's JSONL file.

A row has `context`, `question` and `answer`; `language` (`ko`, `en`, `zh`, ...) and a unique `id`
are optional. kprune's own passages were written for this project.
"""

import json
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from vllm_kprune.compare.options import CommonOptions
from vllm_kprune.compare.suites.jsonl import read_jsonl
from vllm_kprune.errors import KPruneError

__all__ = ["Passage", "passages_of"]


@dataclass(frozen=True)
class Passage:
    """A passage to read, a question about it, and the answer."""

    id: str
    language: str
    context: str
    question: str
    answer: str


def passages_of(data: Path | None, common: CommonOptions) -> list[Passage]:
    """The user's passages, or kprune's own in the compared languages; at most `limit` of them."""
    if data is None:
        text = (files(__package__) / "data" / "input.jsonl").read_text(encoding="utf-8")
        found = [_passage(json.loads(line), "") for line in text.splitlines()]
        # Without a passage in the compared languages, all are used.
        found = [p for p in found if p.language in common.languages] or found
    else:
        found = list(_read(data))
    if common.limit is None or common.limit >= len(found):
        return found
    chosen = random.Random(common.seed).sample(range(len(found)), common.limit)
    return [found[n] for n in sorted(chosen)]


def _read(path: Path) -> Iterator[Passage]:
    seen = set()
    for number, row in read_jsonl(path):
        where = f"{path}:{number}"
        for name in ("context", "question", "answer"):
            if not isinstance(row.get(name), str) or not row[name].strip():
                raise KPruneError(f"{where}: expected text in `{name}`, got {row.get(name)!r:.40}")
        passage = _passage(row, str(number))
        if passage.id in seen:
            raise KPruneError(f"{where}: the id {passage.id!r} occurs twice; ids must be unique")
        seen.add(passage.id)
        yield passage


def _passage(row: Mapping[str, Any], name: str) -> Passage:
    texts = (str(row[key]).strip() for key in ("context", "question", "answer"))
    return Passage(str(row.get("id", name)), str(row.get("language", "en")), *texts)
