"""Which tasks of lm-eval make up a group, and tasks on files of the user.

The groups are the paper's ("Optimizing Korean-Centric LLMs via Token Pruning"): general aptitude,
cultural literacy, instruction following. `local` stands for every file of a folder, NAME.jsonl:

- NAME is a task of lm-eval: that task, with the file in place of its data set on the hub. Rows have
  the columns that the data set has there; `ifeval` reads the file that its authors published.
- otherwise the columns of the first row tell the kind of task (`data/tasks/KIND.yaml` says how it
  is asked and judged): `prompt`, `choices`, `answer` (an index); `prompt`, `number`; `prompt`,
  `answer` (a text).
"""

import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from vllm_kprune.errors import KPruneError
from vllm_kprune.evaluate.compare.suites.jsonl import read_jsonl

__all__ = ["GROUPS", "LOCAL", "chosen_tasks", "local_config", "local_files"]

LOCAL = "local"

GROUPS: Mapping[str, tuple[str, ...]] = {
    "general": ("kmmlu", "kobest", "global_mmlu_ko", "mmlu", "arc_challenge", "mgsm_direct_en"),
    "culture": ("haerae", "click"),
    "instructions": ("ifeval",),
}

# What a row of each kind of our own has; the first that fits is taken.
_KINDS: Mapping[str, Mapping[str, type | tuple[type, ...]]] = {
    "choice": {"prompt": str, "choices": list, "answer": int},
    "number": {"prompt": str, "number": (int, float, str)},
    "text": {"prompt": str, "answer": str},
}


def chosen_tasks(names: Sequence[str], folder: Path | None) -> dict[str, tuple[str, ...]]:
    """Tasks by group, in the order asked for; a task that stands alone is in the group ``""``."""
    if not names:
        names = [LOCAL] if folder else list(GROUPS)
    chosen: dict[str, tuple[str, ...]] = {}
    for name in names:
        if name == LOCAL:
            if folder is None:
                raise KPruneError("tasks of the group `local` need --accuracy-data FOLDER")
            chosen[LOCAL] = tuple(local_files(folder))
        elif name in GROUPS:
            chosen[name] = GROUPS[name]
        else:
            chosen[""] = (*chosen.get("", ()), name)
    return chosen


def local_files(folder: Path) -> dict[str, Path]:
    """The folder's files by the name of their task."""
    if not folder.is_dir():
        raise KPruneError(f"--accuracy-data: there is no folder {folder}")
    found = {path.stem: path for path in sorted(folder.glob("*.jsonl"))}
    if not found:
        raise KPruneError(f"--accuracy-data: {folder} has no file NAME.jsonl")
    return found


def local_config(name: str, path: Path, known: Sequence[str], cache: Path) -> dict[str, Any]:
    """A configuration of lm-eval that reads the file; `known` are the names of its own tasks."""
    data = {
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": {"test": str(path)}, "cache_dir": str(cache)},
        "training_split": None,
        "validation_split": None,
        "test_split": "test",
        "fewshot_split": None,
        "num_fewshot": 0,
    }
    if name in known:
        # lm-eval takes changes to a task of its own as a member of a group only.
        return {"group": f"kprune_{name}", "task": [{"task": name, **data}]}
    kind = _kind(path)
    text = (files(__package__) / "data" / "tasks" / f"{kind}.yaml").read_text(encoding="utf-8")
    return {"task": name, **yaml.safe_load(text), **data}


def _kind(path: Path) -> str:
    """The kind of task that every row fits."""
    rows = list(read_jsonl(path))
    if not rows:
        raise KPruneError(f"{path} has no rows")
    first = rows[0][1]
    kind = next((kind for kind, columns in _KINDS.items() if _fits(first, columns)), None)
    if kind is None:
        want = " or ".join("+".join(columns) for columns in _KINDS.values())
        raise KPruneError(f"{path}: the first row has {', '.join(first)}; expected {want}")
    for number, row in rows:
        if not _fits(row, _KINDS[kind]) or not _sound(kind, row):
            shown = json.dumps(row, ensure_ascii=False)[:80]
            raise KPruneError(f"{path}:{number} does not fit {'+'.join(_KINDS[kind])}: {shown}")
    return kind


def _fits(row: Mapping[str, Any], columns: Mapping[str, type | tuple[type, ...]]) -> bool:
    return all(isinstance(row.get(name), kind) for name, kind in columns.items())


def _sound(kind: str, row: Mapping[str, Any]) -> bool:
    if kind != "choice":
        return True
    texts = all(isinstance(choice, str) and choice for choice in row["choices"])
    return texts and 0 <= row["answer"] < len(row["choices"]) and len(row["choices"]) > 1
