"""The groups of lm-eval tasks, and tasks that use files of the user.

The groups are those of the paper ("Optimizing Korean-Centric LLMs via Token Pruning"): general
aptitude, cultural literacy, instruction following. `local` stands for every file NAME.jsonl of a
folder:

- If the columns of the first row are those of one of kprune's own kinds of tasks, the file is such
  a task: `prompt`, `choices`, `answer` (an index); `prompt`, `number`; or `prompt`, `answer` (a
  text). `data/tasks/KIND.yaml` says how it is asked and judged.
- Otherwise NAME is a task of lm-eval, and the file replaces its data set on the hub, with the same
  columns: `ifeval.jsonl` is the file that its authors published.
"""

import json
from collections.abc import Collection, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from vllm_kprune.compare.suites.jsonl import read_jsonl
from vllm_kprune.errors import KPruneError

__all__ = ["GROUPS", "LOCAL", "check_files", "chosen_tasks", "local_files", "on_file", "own_config"]

LOCAL = "local"

GROUPS: Mapping[str, tuple[str, ...]] = {
    "general": ("kmmlu", "kobest", "global_mmlu_ko", "mmlu", "arc_challenge", "mgsm_direct_en"),
    "culture": ("haerae", "click"),
    "instructions": ("ifeval",),
}

# The columns of kprune's own kinds of tasks; the first kind that fits is used.
_KINDS: Mapping[str, Mapping[str, type | tuple[type, ...]]] = {
    "choice": {"prompt": str, "choices": list, "answer": int},
    "number": {"prompt": str, "number": (int, float, str)},
    "text": {"prompt": str, "answer": str},
}


def chosen_tasks(names: Sequence[str], folder: Path | None) -> dict[str, tuple[str, ...]]:
    """Tasks by group, in the given order; single tasks are in the group ``""``."""
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
    """The files of the folder, by the name of their task."""
    if not folder.is_dir():
        raise KPruneError(f"--accuracy-data: there is no folder {folder}")
    found = {path.stem: path for path in sorted(folder.glob("*.jsonl"))}
    if not found:
        raise KPruneError(
            f"--accuracy-data: {folder} has no file NAME.jsonl, expected at least one"
        )
    return found


def check_files(folder: Path, names: Collection[str]) -> None:
    """Raise a `KPruneError` for the first file of these tasks that cannot be read."""
    # Files of tasks that were not chosen may hold anything.
    for name, path in local_files(folder).items():
        if name in names:
            _kind(path)


def own_config(name: str, path: Path, cache: Path) -> dict[str, Any] | None:
    """A configuration of lm-eval for a file of one of kprune's kinds; None for other files."""
    kind = _kind(path)
    if kind is None:
        return None
    text = (files(__package__) / "data" / "tasks" / f"{kind}.yaml").read_text(encoding="utf-8")
    return {"task": name, **yaml.safe_load(text), **_data(path, cache)}


def on_file(name: str, path: Path, cache: Path) -> dict[str, Any]:
    """lm-eval's task of that name, reading the file.

    The task is wrapped in a group because lm-eval allows changes only to members of groups.
    """
    return {"group": f"kprune_{name}", "task": [{"task": name, **_data(path, cache)}]}


def _data(path: Path, cache: Path) -> dict[str, Any]:
    return {
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": {"test": str(path)}, "cache_dir": str(cache)},
        # None overrides the splits of lm-eval's own task: the file is all there is, and no split is
        # left to draw examples from.
        "training_split": None,
        "validation_split": None,
        "test_split": "test",
        "fewshot_split": None,
        "num_fewshot": 0,
    }


def _kind(path: Path) -> str | None:
    """The kind that every row fits; None if the first row fits none."""
    rows = list(read_jsonl(path))
    if not rows:
        raise KPruneError(f"{path} has no rows, expected at least one")
    first = rows[0][1]
    kind = next((kind for kind, columns in _KINDS.items() if _fits(first, columns)), None)
    if kind is None:
        return None
    for number, row in rows:
        if not _fits(row, _KINDS[kind]) or not _sound(kind, row):
            shown = json.dumps(row, ensure_ascii=False)[:80]
            raise KPruneError(
                f"{path}:{number} does not fit {'+'.join(_KINDS[kind])}, the columns of the first "
                f"row: {shown}"
            )
    return kind


def _fits(row: Mapping[str, Any], columns: Mapping[str, type | tuple[type, ...]]) -> bool:
    values = {name: row.get(name) for name in columns}
    # True is an int in Python, but no index and no number.
    return all(
        isinstance(values[name], kind) and not isinstance(values[name], bool)
        for name, kind in columns.items()
    )


def _sound(kind: str, row: Mapping[str, Any]) -> bool:
    if kind != "choice":
        return True
    texts = all(isinstance(choice, str) and choice for choice in row["choices"])
    # A negative index would silently choose from the end.
    return texts and 0 <= row["answer"] < len(row["choices"]) and len(row["choices"]) > 1
