"""Texts whose layout matters are found and left whole; prose is not."""

import csv
import gzip
import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.prompt_cases import UNICODE

import vllm_kprune.prompt.budget
import vllm_kprune.prompt.text_pruner
from vllm_kprune.prompt.layout import layout_of
from vllm_kprune.prompt.pruner import InputPruner

TABLE = "| city | people |\n|---|---|\n| Busan | 3.4 million |\n| Seoul | 9.4 million |\n"
CSV = "name,age,city\nAnna,31,Oslo\nBo,44,Busan\nCy,27,Rome\n"
JSON = json.dumps({"city": "Busan", "people": 3_400_000, "tags": ["port", "film"]}, indent=2)
LIST = "Bring these:\n- flour and sugar\n- two eggs\n- a pint of milk\n1. Mix\n2. Bake\n"
C = "#include <stdio.h>\nint main(void) {\n    int n = 3;\n    puts(text);\n    return 0;\n}\n"
SQL = "SELECT name, age FROM people;\nINSERT INTO people VALUES (1, 'a');\nx = 1;\n"
FENCED = f"Run this:\n```python\n{'print(1)' + chr(10)}{'x = 2' + chr(10) * 1}{'y = 3' * 9}\n```\n"
PROSE = "The castle was built in 1871, and it burned down. Nobody knows why.\n" * 4
QUOTING = PROSE + "    x = f(y)\nreturn x;\n" + PROSE


@pytest.mark.parametrize(
    ("text", "layout"),
    [
        (TABLE, "table"),
        (CSV, "table"),
        (JSON, "json"),
        ('[{"a": 1}, {"a": 2}]', "json"),
        (LIST, "list"),
        (C, "code"),
        (SQL, "code"),
        (FENCED, "code"),
        (PROSE, None),
        (QUOTING, None),
        ("", None),
        ("- a single line", None),
        ("<|im_start|>user\nThe cat.<|im_end|>\n" * 3, None),
    ],
)
def test_a_text_is_what_most_of_its_lines_are(text: str, layout: str | None) -> None:
    assert layout_of(text) == layout


@pytest.mark.parametrize("module", [vllm_kprune.prompt.budget, vllm_kprune.prompt.text_pruner])
def test_python_is_code_docstrings_and_all(module: object) -> None:
    assert layout_of(Path(module.__file__).read_text()) == "code"  # type: ignore[attr-defined]


@given(UNICODE | st.text())
def test_any_text_has_an_answer(text: str) -> None:
    assert layout_of(text) in (None, "code", "json", "table", "list")


def test_it_is_left_whole_unless_the_options_say_otherwise() -> None:
    pruner = InputPruner()
    (segment,) = pruner.prune(TABLE, keep=0.5).segments
    assert (segment.text, segment.layout, segment.exceeds) == (TABLE, "table", False)
    (segment,) = pruner.prune(TABLE, keep=0.5, prune_layout=True).segments
    assert segment.text != TABLE
    assert segment.layout is None


@pytest.mark.skipif("KPRUNE_DATA" not in os.environ, reason="KPRUNE_DATA names no real text")
@pytest.mark.slow
def test_no_real_passage_is_taken_for_anything_else() -> None:
    folder = Path(os.environ["KPRUNE_DATA"])
    texts = []
    for language in ("en", "zh", "de", "ru"):
        with gzip.open(folder / "xquad" / f"xquad.{language}.json.gz") as stream:
            articles = json.load(stream)["data"]
        texts += [p["context"] for article in articles for p in article["paragraphs"]]
    with (folder / "kobest-dev" / "boolq_first400.tsv").open(encoding="utf-8") as stream:
        texts += [row["Text"] for row in csv.DictReader(stream, delimiter="\t", quoting=3)]
    assert len(texts) > 1000
    assert [text for text in texts if layout_of(text)] == []
