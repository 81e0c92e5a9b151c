"""The files of the paper's experiment in a folder with real text, as options of suites.

Missing files are left out; their suites then use kprune's own prompts. Of the paper's groups, the
folder has general aptitude, and instruction following (IFEval), which takes long: its answers have
up to 1,280 tokens. Cultural literacy (HAE-RAE, CLIcK) is not in the folder: lm-eval takes it from
the hub (`kprune compare --tasks culture`).
"""

import csv
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

__all__ = ["own_data"]

Row = dict[str, Any]


def own_data(data: Path, folder: Path, *, ifeval: bool = False) -> dict[str, dict[str, Any]]:
    """Options by suite; tasks are written to `folder` as JSONL files, which `accuracy` reads."""
    found: dict[str, dict[str, Any]] = {}
    if (confusion := data / "language-confusion-ko").is_dir():
        found["stability"] = {"benchmark": confusion}
    if (parallel := data / "pud-en-ko-zh-dev" / "pud.en-ko-zh.jsonl").is_file():
        found["translation"] = {"files": (parallel,)}
    tasks = TASKS if ifeval else TASKS[:-1]
    made = [name for source, name, make in tasks if write_task(data / source, folder, name, make)]
    if made:
        found["accuracy"] = {"tasks": tuple(made), "data": folder}
    return found


def write_task(
    source: Path, folder: Path, name: str, make: Callable[[Path], Iterator[Row]]
) -> bool:
    """Write the file of one task; False if its source is missing."""
    if not source.is_file():
        return False
    folder.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(row, ensure_ascii=False) for row in make(source)]
    (folder / f"{name}.jsonl").write_text("\n".join([*lines, ""]), encoding="utf-8")
    return True


def boolq(path: Path) -> Iterator[Row]:
    """KoBEST BoolQ, asked as lm-eval asks it."""
    for row in table(path):
        prompt = f"{row['Text']} 질문: {row['Question']} 답변:"
        answer = int(row["Answer"].strip().lower() == "true")
        yield {"prompt": prompt, "choices": ["아니오", "예"], "answer": answer}


def sentineg(path: Path) -> Iterator[Row]:
    """KoBEST SentiNeg, asked as lm-eval asks it."""
    for row in table(path):
        prompt = f"문장: {row['Text']} 긍부정:"
        yield {"prompt": prompt, "choices": ["부정", "긍정"], "answer": int(row["Label"])}


def mgsm(path: Path) -> Iterator[Row]:
    """Word problems, without a header line: question, number."""
    for line in path.read_text(encoding="utf-8").splitlines():
        question, _, number = line.rpartition("\t")
        prompt = f"Question: {question}\nAnswer with the number only.\nAnswer:"
        yield {"prompt": prompt, "number": number.replace(",", "")}


def as_published(path: Path) -> Iterator[Row]:
    """Rows in the format that lm-eval's own task reads."""
    for line in path.read_text(encoding="utf-8").splitlines():
        yield json.loads(line)


def table(path: Path) -> Iterator[Mapping[str, str]]:
    with path.open(encoding="utf-8", newline="") as stream:
        yield from csv.DictReader(stream, delimiter="\t", quoting=csv.QUOTE_NONE)


TASKS = (
    ("kobest-dev/boolq_first400.tsv", "boolq_ko", boolq),
    ("kobest-dev/sentineg_first300.tsv", "sentineg_ko", sentineg),
    ("eval-mgsm/mgsm_en.tsv", "mgsm_en", mgsm),
    ("eval-ifeval/input_data.jsonl", "ifeval", as_published),
)
