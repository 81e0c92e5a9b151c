"""Passages with a question and its gold answer: our own few, or a JSONL file of the user.

A row has `context`, `question` and `answer`; `language` (`ko`, `en`, `zh`, ...) and a unique `id`
are optional. The passages that are shipped were written for this project.
"""

import json
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from vllm_kprune.compare.run import CompareOptions
from vllm_kprune.compare.suites.jsonl import read_jsonl
from vllm_kprune.errors import KPruneError

__all__ = ["Passage", "passages_of"]


@dataclass(frozen=True)
class Passage:
    """What is to be read, asked and answered."""

    id: str
    language: str
    context: str
    question: str
    answer: str


def passages_of(options: CompareOptions) -> list[Passage]:
    """The user's passages, else our own in the languages compared; at most `limit` of them."""
    if options.input_data is None:
        text = (files(__package__) / "data" / "input.jsonl").read_text(encoding="utf-8")
        found = [_passage(json.loads(line), "") for line in text.splitlines()]
        found = [p for p in found if p.language in options.languages] or found
    else:
        found = list(_read(options))
    if options.limit is None or options.limit >= len(found):
        return found
    chosen = random.Random(options.seed).sample(range(len(found)), options.limit)
    return [found[n] for n in sorted(chosen)]


def _read(options: CompareOptions) -> Iterator[Passage]:
    assert options.input_data is not None
    seen = set()
    for number, row in read_jsonl(options.input_data):
        where = f"{options.input_data}:{number}"
        for name in ("context", "question", "answer"):
            if not isinstance(row.get(name), str) or not row[name].strip():
                raise KPruneError(f"{where}: expected text in `{name}`, got {row.get(name)!r:.40}")
        passage = _passage(row, str(number))
        if passage.id in seen:
            raise KPruneError(f"{where}: the id {passage.id!r} is there twice; ids name rows")
        seen.add(passage.id)
        yield passage


def _passage(row: Mapping[str, Any], name: str) -> Passage:
    texts = (str(row[key]).strip() for key in ("context", "question", "answer"))
    return Passage(str(row.get("id", name)), str(row.get("language", "en")), *texts)
