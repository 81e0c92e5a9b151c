"""Accuracy on tasks of lm-eval, the same items on both sides, judged item by item.

lm-eval builds the prompts and judges the answers; both sides are asked through the run's client
(`lm_eval_model.py`), so that a killed run goes on where it was. Of each task one metric is told:
the one its authors report first. Groups (`accuracy_tasks.py`) are also summed up, every item with
the same weight. A task whose data or packages are not to be had is named with the reason.
"""

import random
import re
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from vllm_kprune.compare.measurements import Example, Measurement, Metric, SuiteResult
from vllm_kprune.compare.run import Context
from vllm_kprune.compare.suites.accuracy_tasks import (
    GROUPS,
    LOCAL,
    chosen_tasks,
    local_files,
    on_file,
    own_config,
)
from vllm_kprune.compare.suites.lm_eval_model import (
    EndpointModel,
    PairOfModels,
    request_name,
)
from vllm_kprune.errors import KPruneError, nearest

__all__ = ["Accuracy"]

# Metrics and filters of lm-eval by what tells most; of what is not listed, the first.
_METRICS = ("acc", "exact_match", "prompt_level_strict_acc")
_FILTERS = ("flexible-extract", "last-number", "first-line", "none")
_MARGIN = 0.01
_EXAMPLES = 20  # of each task, those first that one side alone got right
_LONGEST = 4000  # characters of a prompt that is shown


@dataclass(frozen=True)
class _Judged:
    """One item: how well each side did (0 to 1), and what they said."""

    name: str
    prompt: str
    scores: tuple[float, float]
    answers: tuple[str, str]
    target: str


class _Unavailable(Exception):
    """Why a task was not measured."""


@dataclass(frozen=True)
class Accuracy:
    """The suite `accuracy`."""

    name: str = "accuracy"
    metrics: tuple[str, ...] = ("all", LOCAL, *GROUPS)
    help: str = "tasks of lm-eval: general aptitude, culture, instructions, or files of yours"

    def run(self, context: Context) -> SuiteResult:
        """Run every chosen task; one that cannot be had does not stop the others."""
        options = context.options
        groups = chosen_tasks(options.accuracy, options.accuracy_data)
        if find_spec("lm_eval") is None:
            reason = "lm-eval is not installed; pip install 'vllm-kprune[accuracy]'"
            return SuiteResult(self.name, (), unavailable={"*": reason})
        judged: dict[str, list[_Judged]] = {}
        unavailable: dict[str, str] = {}
        notes: list[str] = []
        with tempfile.TemporaryDirectory(prefix="kprune-lm-eval-") as folder:
            for task in dict.fromkeys(name for names in groups.values() for name in names):
                try:
                    judged[task], note = _judge(context, self.name, task, Path(folder))
                    notes.append(note)
                except _Unavailable as error:
                    unavailable[_slug(task)] = str(error)
        main = (
            "all"
            if len(judged) + len(unavailable) > 1
            else next(iter([*map(_slug, judged), *unavailable]), "all")
        )
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


def _judge(
    context: Context, suite: str, task: str, cache_folder: Path
) -> tuple[list[_Judged], str]:
    """Every item that both sides answered, and how the task was asked."""
    loaded = _loaded(context, task, cache_folder)
    kinds = {getattr(part, "OUTPUT_TYPE", "?") for part in loaded.values()}
    chat = _asks_by_chat(context, kinds)
    samples = _drawn(loaded, context.options.limit, context.options.seed)
    pair = PairOfModels(context, suite, chat, _most_tokens(context))
    sides = []
    for side in (0, 1):
        sides.append(_evaluated(pair, side, {n: loaded[n] for n in samples}, samples))
    rows = list(_paired(sides, pair.failed))
    if not rows:
        reason = next(iter(pair.failed.values()), "it has none")
        raise _Unavailable(f"no item was answered by both sides: {reason}")
    lost = sum(map(len, samples.values())) - len(rows)
    how = "chat" if chat else "completions"
    return rows, f"{task}: {len(rows)} items over {how}" + (f", {lost} left out" if lost else "")


def _asks_by_chat(context: Context, kinds: Iterable[str]) -> bool:
    """Answers are generated by chat where both can; choices need log-probabilities of prompts."""
    if set(kinds) <= {"generate_until"}:
        if context.missing("chat") is None:
            return True
        reason = context.missing("completion")
    elif set(kinds) <= {"generate_until", "multiple_choice"}:
        reason = context.missing("completion", "prompt_logprobs", "usage")
    else:
        raise _Unavailable(f"tasks of type {', '.join(sorted(kinds))} are not asked of endpoints")
    if reason:
        raise _Unavailable(reason)
    return False


def _most_tokens(context: Context) -> int | None:
    """Half of the shorter context of the two, where servers tell it (vLLM does): a request for more
    than fits beside the prompt would be refused."""
    lengths = []
    for client in context.clients:
        models = context.wait(client.get("/v1/models"))
        rows = models.get("data") if isinstance(models, dict) else None
        for row in rows if isinstance(rows, list) else ():
            if isinstance(row, dict) and row.get("id") == client.endpoint.model:
                length = row.get("max_model_len")
                lengths += [length // 2] if isinstance(length, int) and length > 1 else []
    return min(lengths, default=None)


def _loaded(context: Context, task: str, cache_folder: Path) -> dict[str, Any]:
    """lm-eval's task objects by name, with their data."""
    folder = context.options.accuracy_data
    path = local_files(folder).get(task) if folder else None
    with _reasons(task), _without_bars():
        spec = own_config(task, path, cache_folder) if path else None
        if spec is not None:
            return dict(_manager(False).load([spec])["tasks"])
        manager = _manager(True)
        if task not in manager.all_tasks:
            near = get_close_matches(task, manager.all_tasks, n=5) or list(GROUPS)
            raise KPruneError(f"--tasks: there is no task {task!r}; {nearest(task, near)}")
        named = on_file(task, path, cache_folder) if path else task
        return dict(manager.load([named])["tasks"])


@cache
def _manager(with_index: bool) -> Any:
    """What loads tasks; lm-eval's index of its own takes seconds, for it has thousands of files."""
    from lm_eval.tasks import TaskManager

    return TaskManager(include_defaults=with_index)


@contextmanager
def _reasons(task: str) -> Iterator[None]:
    """Turn what stops a task into the reason that the report gives; what is printed meanwhile goes
    to stderr, for stdout is the command's."""
    try:
        with redirect_stdout(sys.stderr):
            yield
    except (KPruneError, _Unavailable):
        raise
    except ConnectionError as error:
        _stay_offline()
        raise _Unavailable(f"{task} could not be run: {error}") from None
    # lm-eval, datasets, the hub's client and each task's own code raise what they like; whatever
    # it is ends this task alone, and is told.
    except Exception as error:
        lines = [line.strip() for line in str(error).splitlines()]
        first = next((line for line in lines if any(map(str.isalnum, line))), "no message")
        raise _Unavailable(
            f"{task} could not be run: {type(error).__name__}: {first[:300]}"
        ) from None


@contextmanager
def _without_bars() -> Iterator[None]:
    """No progress bars of lm-eval and its data sets for each side of each task: the run has its
    own. lm-eval has no switch for the one with which it builds requests."""
    import datasets
    from lm_eval.api import task as building

    usual = building.tqdm
    building.tqdm = partial(usual, disable=True)
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        building.tqdm = usual
        datasets.enable_progress_bars()


def _stay_offline() -> None:
    """Look only among what is kept here from now on: a hub that is out of reach is tried for half a
    minute by every data set. What `HF_HUB_OFFLINE` sets can only be set so once it was read."""
    import datasets
    import huggingface_hub.constants

    datasets.config.HF_HUB_OFFLINE = True
    huggingface_hub.constants.HF_HUB_OFFLINE = True


def _drawn(loaded: Mapping[str, Any], limit: int | None, seed: int) -> dict[str, list[int]]:
    """Which documents of each part, drawn over all parts alike; parts without any are left out."""
    with _reasons("a task"):
        every = [(name, n) for name, part in loaded.items() for n in range(len(part.eval_docs))]
    if limit is not None and limit < len(every):
        every = random.Random(seed).sample(every, limit)
    chosen: dict[str, list[int]] = {}
    for name, number in sorted(every):
        chosen.setdefault(name, []).append(number)
    return chosen


def _evaluated(
    pair: PairOfModels, side: int, parts: Mapping[str, Any], samples: Mapping[str, Sequence[int]]
) -> dict[str, list[dict[str, Any]]]:
    """lm-eval's record of every item of one side, by part."""
    from lm_eval import evaluate

    for part in parts.values():
        part.set_fewshot_seed(seed=pair.context.options.seed)
        if part.get_config("num_fewshot") is None:
            part.set_config(key="num_fewshot", value=0)
    with _reasons(", ".join(samples)), _without_bars():
        found = evaluate(
            lm=EndpointModel(pair, side),
            task_dict={"tasks": dict(parts), "groups": {}, "group_map": {}},
            samples=dict(samples),
            bootstrap_iters=0,
            log_samples=True,
            apply_chat_template=pair.chat,
            fewshot_as_multiturn=pair.chat,
        )
        return dict(found["samples"])


def _paired(
    sides: Sequence[Mapping[str, Sequence[Mapping[str, Any]]]], failed: Mapping[str, str]
) -> Iterator[_Judged]:
    """The items of both sides, by part and number, without those that lack an answer."""
    for part, records in sides[0].items():
        chosen = _filter_of(records)
        tables = [{r["doc_id"]: r for r in side[part] if r["filter"] == chosen} for side in sides]
        for number in tables[0].keys() & tables[1].keys():
            pair = [table[number] for table in tables]
            if pair[0]["prompt_hash"] != pair[1]["prompt_hash"]:
                raise _Unavailable(f"{part} asked the sides differently; this is a bug of the task")
            if any(request_name(part, args) in failed for args in pair[0]["arguments"]):
                continue
            yield _judged(f"{part}/{number}", pair)


def _judged(name: str, pair: Sequence[Mapping[str, Any]]) -> _Judged:
    metric = _metric_of(pair[0])
    return _Judged(
        name,
        str(pair[0]["arguments"][0][0])[:_LONGEST],
        (_score(pair[0][metric]), _score(pair[1][metric])),
        (_said(pair[0]), _said(pair[1])),
        _target(pair[0]),
    )


def _filter_of(records: Sequence[Mapping[str, Any]]) -> str:
    names = list(dict.fromkeys(str(record["filter"]) for record in records))
    return next((name for name in _FILTERS if name in names), names[0])


def _metric_of(record: Mapping[str, Any]) -> str:
    names = [n for n in record["metrics"] if isinstance(record[n], bool | int | float | np.number)]
    if not names:
        raise _Unavailable(f"its metrics ({', '.join(record['metrics'])}) do not judge items")
    return next((name for name in _METRICS if name in names), str(names[0]))


def _score(value: Any) -> float:
    return float(value)


def _said(record: Mapping[str, Any]) -> str:
    """The answer; of choices, the likeliest."""
    if len(record["arguments"]) == 1:
        return str(record["resps"][0][0])
    totals = [response[0][0] for response in record["resps"]]
    return str(record["arguments"][int(np.argmax(totals))][1]).strip()


def _target(record: Mapping[str, Any]) -> str:
    target = record["target"]
    if len(record["arguments"]) > 1 and isinstance(target, int):
        return str(record["arguments"][target][1]).strip()
    return str(target)


def _measurements(
    groups: Mapping[str, Sequence[str]], judged: Mapping[str, Sequence[_Judged]]
) -> Iterator[Measurement]:
    """All items, then each group, then each task; nothing twice."""
    if len(judged) > 1:
        yield _measurement("all", "all tasks", [r for rows in judged.values() for r in rows])
    for group, tasks in groups.items():
        had = [task for task in tasks if task in judged]
        if group and 1 < len(had) < len(judged):
            rows = [row for task in had for row in judged[task]]
            yield _measurement(group, f"group {group}", rows)
    for task, alone in judged.items():
        yield _measurement(_slug(task), task, alone)


def _measurement(name: str, title: str, rows: Sequence[_Judged]) -> Measurement:
    metric = Metric(name, f"accuracy, {title}", "share", "higher", _MARGIN)
    scores = np.array([row.scores for row in rows], np.float64)
    return Measurement(metric, tuple(row.name for row in rows), scores[:, :1], scores[:, 1:])


def _examples(task: str, rows: Sequence[_Judged]) -> Iterator[Example]:
    changed = sorted(rows, key=lambda row: -abs(row.scores[0] - row.scores[1]))
    for row in changed[:_EXAMPLES]:
        better = row.scores[1] - row.scores[0]
        verdict = "better" if better > 0 else "worse" if better < 0 else "alike"
        labels = {"task": task, "verdict": verdict}
        yield Example(row.name, row.prompt, row.answers, labels, reference=row.target)


def _slug(task: str) -> str:
    return re.sub(r"[^a-z0-9_.@-]", "_", task.lower())
