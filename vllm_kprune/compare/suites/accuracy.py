"""Accuracy on tasks of lm-eval: the same items for both sides, judged item by item.

lm-eval builds the prompts and judges the answers (`lm_eval_tasks.py`). Both sides are asked through
the run's clients (`lm_eval_model.py`), so that a killed run resumes. Each task is reported with one
metric, the one that its authors report first. Groups (`accuracy_tasks.py`) are also summed up, with
the same weight for each item. A task whose data or packages are missing is reported as *not
measured*, with the reason.
"""

import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from vllm_kprune.compare.measurements import Example, Measurement, Metric, SuiteResult
from vllm_kprune.compare.options import DATA, MEASURED, CommonOptions
from vllm_kprune.compare.run import Context, Suite
from vllm_kprune.compare.suites.accuracy_tasks import GROUPS, LOCAL, check_files, chosen_tasks
from vllm_kprune.compare.suites.lm_eval_loading import TaskUnavailable
from vllm_kprune.compare.suites.lm_eval_tasks import JudgedItem, judge_task
from vllm_kprune.options import option

__all__ = ["Accuracy"]

_MARGIN = 0.01
_EXAMPLES = 20  # of each task, beginning with those that only one side got right


@dataclass(frozen=True)
class Accuracy(Suite):
    """The suite `accuracy`."""

    @dataclass(frozen=True)
    class Options:
        """Its own options."""

        tasks: tuple[str, ...] = option(
            (),
            "accuracy: a preset (general, culture, instructions, local) or a task of lm-eval; "
            "repeat for several.",
            commas=True,
            group=MEASURED,
        )
        data: Path | None = option(
            None,
            "accuracy: folder of your own JSONL tasks.",
            flags=("--accuracy-data",),
            existing="folder",
            group=DATA,
        )

    options: Options = Options()
    name = "accuracy"
    more = "--accuracy-data FOLDER"
    metrics = ("all", LOCAL, *GROUPS)
    help = "tasks of lm-eval: general aptitude, culture, instructions, or files of your own"

    def check(self, common: CommonOptions) -> None:
        """Read the user's files, except those that only lm-eval understands."""
        chosen = chosen_tasks(self.options.tasks, self.options.data)
        if self.options.data:
            check_files(self.options.data, {name for names in chosen.values() for name in names})

    def run(self, context: Context) -> SuiteResult:
        """Run every chosen task; one that is unavailable does not stop the others."""
        groups = chosen_tasks(self.options.tasks, self.options.data)
        if find_spec("lm_eval") is None:
            reason = "lm-eval is not installed; pip install 'vllm-kprune[accuracy]'"
            return SuiteResult(self.name, (), unavailable={"*": reason})
        judged, unavailable, notes = self._judged(context, groups)
        main = _main(judged, unavailable)
        if not judged:
            unavailable = {"*": "no task could be measured", **unavailable}
        elif main == "all" and len(judged) == 1:
            unavailable["all"] = f"only {next(iter(judged))} could be measured"
        return SuiteResult(
            self.name,
            tuple(_measurements(groups, judged)),
            tuple(example for task, rows in judged.items() for example in _examples(task, rows)),
            unavailable,
            tuple(notes),
            main=main,
        )

    def _judged(
        self, context: Context, groups: Mapping[str, Sequence[str]]
    ) -> tuple[dict[str, list[JudgedItem]], dict[str, str], list[str]]:
        """The items of each task, why the other tasks are unavailable, and notes."""
        judged: dict[str, list[JudgedItem]] = {}
        unavailable: dict[str, str] = {}
        notes: list[str] = []
        # A task may stand in several groups, but is asked once.
        tasks = dict.fromkeys(name for names in groups.values() for name in names)
        with tempfile.TemporaryDirectory(prefix="kprune-lm-eval-") as folder:
            for task in tasks:
                try:
                    judged[task], note = judge_task(
                        context, self.name, task, self.options.data, Path(folder)
                    )
                    notes.append(note)
                except TaskUnavailable as error:
                    unavailable[_slug(task)] = str(error)
        return judged, unavailable, notes


def _main(judged: Mapping[str, object], unavailable: Mapping[str, str]) -> str:
    """The metric that stands for the suite: `all`, or the only task that was chosen."""
    if len(judged) + len(unavailable) > 1:
        return "all"
    return next(iter([*map(_slug, judged), *unavailable]), "all")


def _measurements(
    groups: Mapping[str, Sequence[str]], judged: Mapping[str, Sequence[JudgedItem]]
) -> Iterator[Measurement]:
    """All items, then each group, then each task; nothing twice."""
    if len(judged) > 1:
        yield _measurement("all", "all tasks", [r for rows in judged.values() for r in rows])
    for group, tasks in groups.items():
        had = [task for task in tasks if task in judged]
        # Not for single tasks (""), nor where the group would repeat one task or the total.
        if group and 1 < len(had) < len(judged):
            rows = [row for task in had for row in judged[task]]
            yield _measurement(group, f"group {group}", rows)
    for task, alone in judged.items():
        yield _measurement(_slug(task), task, alone)


def _measurement(name: str, title: str, rows: Sequence[JudgedItem]) -> Measurement:
    metric = Metric(name, f"accuracy, {title}", "share", "higher", _MARGIN)
    # [items, 2]; slices instead of indices keep each side two-dimensional.
    scores = np.array([row.scores for row in rows], np.float64)
    return Measurement(metric, tuple(row.name for row in rows), scores[:, :1], scores[:, 1:])


def _examples(task: str, rows: Sequence[JudgedItem]) -> Iterator[Example]:
    changed = sorted(rows, key=lambda row: -abs(row.scores[0] - row.scores[1]))
    for row in changed[:_EXAMPLES]:
        better = row.scores[1] - row.scores[0]
        verdict = "better" if better > 0 else "worse" if better < 0 else "alike"
        labels = {"task": task, "verdict": verdict}
        yield Example(row.name, row.prompt, row.answers, labels, reference=row.target)


def _slug(task: str) -> str:
    # Only characters that `--fail-on` can name (`gate._GATE`).
    return re.sub(r"[^a-z0-9_.@-]", "_", task.lower())
