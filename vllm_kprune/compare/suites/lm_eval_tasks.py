"""Load tasks of lm-eval, ask both endpoints, and pair the judged items of the two sides.

Whatever stops a task becomes the reason that the report gives for it.
"""

import random
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from vllm_kprune.compare.run import Context
from vllm_kprune.compare.suites.accuracy_tasks import GROUPS, local_files, on_file, own_config
from vllm_kprune.compare.suites.lm_eval_model import EndpointModel, PairOfModels, request_name
from vllm_kprune.errors import KPruneError, nearest

__all__ = ["JudgedItem", "TaskUnavailable", "judge_task"]

# Metrics and filters of lm-eval in order of preference. If none is listed, the first one is used.
_METRICS = ("acc", "exact_match", "prompt_level_strict_acc")
_FILTERS = ("flexible-extract", "last-number", "first-line", "none")
_LONGEST = 4000  # characters of a prompt in an example


@dataclass(frozen=True)
class JudgedItem:
    """One item: the score of each side (0 to 1), and their answers."""

    name: str
    prompt: str
    scores: tuple[float, float]
    answers: tuple[str, str]
    target: str


class TaskUnavailable(Exception):
    """Why a task was not measured."""


def judge_task(
    context: Context, suite: str, task: str, data: Path | None, cache_folder: Path
) -> tuple[list[JudgedItem], str]:
    """Every item that both sides answered, and a note on how the task was asked."""
    loaded = _loaded(task, data, cache_folder)
    kinds = {getattr(part, "OUTPUT_TYPE", "?") for part in loaded.values()}
    chat = _asks_by_chat(context, kinds)
    samples = _drawn(loaded, context.options.limit, context.options.seed)
    pair = PairOfModels(context, suite, chat, _most_tokens(context))
    parts = {name: loaded[name] for name in samples}
    sides = [_evaluated(pair, side, parts, samples) for side in (0, 1)]
    rows = list(_paired(sides, pair.failed))
    if not rows:
        reason = next(iter(pair.failed.values()), "it has none")
        raise TaskUnavailable(f"no item was answered by both sides: {reason}")
    lost = sum(map(len, samples.values())) - len(rows)
    how = "chat" if chat else "completions"
    return rows, f"{task}: {len(rows)} items over {how}" + (f", {lost} left out" if lost else "")


def _asks_by_chat(context: Context, kinds: Iterable[str]) -> bool:
    """Whether to ask by chat: generated answers are, if both sides can chat.

    Multiple-choice tasks need log-probabilities of prompts, which means completions.
    """
    if set(kinds) <= {"generate_until"}:
        if context.missing("chat") is None:
            return True
        reason = context.missing("completion")
    elif set(kinds) <= {"generate_until", "multiple_choice"}:
        reason = context.missing("completion", "prompt_logprobs", "usage")
    else:
        raise TaskUnavailable(f"tasks of type {', '.join(sorted(kinds))} are not supported")
    if reason:
        raise TaskUnavailable(reason)
    return False


def _most_tokens(context: Context) -> int | None:
    """Half of the shorter of the two contexts, if the servers report them, as vLLM does.

    A server refuses a request for more tokens than fit beside the prompt.
    """
    lengths = []
    for client in context.clients:
        models = context.wait(client.get("/v1/models"))
        rows = models.get("data") if isinstance(models, dict) else None
        for row in rows if isinstance(rows, list) else ():
            if isinstance(row, dict) and row.get("id") == client.endpoint.model:
                length = row.get("max_model_len")
                lengths += [length // 2] if isinstance(length, int) and length > 1 else []
    return min(lengths, default=None)


def _loaded(task: str, folder: Path | None, cache_folder: Path) -> dict[str, Any]:
    """lm-eval's task objects by name, with their data."""
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
    """lm-eval's loader of tasks; building its own index of thousands of files takes seconds."""
    from lm_eval.tasks import TaskManager

    return TaskManager(include_defaults=with_index)


@contextmanager
def _reasons(task: str) -> Iterator[None]:
    """Turn whatever stops a task into a `TaskUnavailable`.

    Anything printed meanwhile goes to stderr, as stdout belongs to the command.
    """
    try:
        with redirect_stdout(sys.stderr):
            yield
    except (KPruneError, TaskUnavailable):
        raise
    except ConnectionError as error:
        _stay_offline()
        raise TaskUnavailable(f"{task} could not be run: {error}") from None
    # lm-eval, datasets, the hub's client and the code of a task raise any kind of exception. It
    # must end this task only, and is reported.
    except Exception as error:
        lines = [line.strip() for line in str(error).splitlines()]
        first = next((line for line in lines if any(map(str.isalnum, line))), "no message")
        raise TaskUnavailable(
            f"{task} could not be run: {type(error).__name__}: {first[:300]}"
        ) from None


@contextmanager
def _without_bars() -> Iterator[None]:
    """Switch off the progress bars of lm-eval and datasets, as the run has its own.

    lm-eval has no switch for the bar that it shows while it builds requests.
    """
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
    """From now on, use only data that is cached here.

    If the hub is out of reach, each data set would try it for half a minute. The variable
    `HF_HUB_OFFLINE` has been read already, so its effects are set directly.
    """
    import datasets
    import huggingface_hub.constants

    datasets.config.HF_HUB_OFFLINE = True
    huggingface_hub.constants.HF_HUB_OFFLINE = True


def _drawn(loaded: Mapping[str, Any], limit: int | None, seed: int) -> dict[str, list[int]]:
    """The documents to use of each part, drawn evenly over all parts; empty parts are omitted."""
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
) -> Iterator[JudgedItem]:
    """The items of both sides, by part and number, without those that lack an answer."""
    for part, records in sides[0].items():
        chosen = _filter_of(records)
        tables = [{r["doc_id"]: r for r in side[part] if r["filter"] == chosen} for side in sides]
        for number in tables[0].keys() & tables[1].keys():
            pair = [table[number] for table in tables]
            if pair[0]["prompt_hash"] != pair[1]["prompt_hash"]:
                raise TaskUnavailable(
                    f"{part} asked the two sides differently, which is a bug of the task"
                )
            if any(request_name(part, args) in failed for args in pair[0]["arguments"]):
                continue
            yield _judged(f"{part}/{number}", pair)


def _judged(name: str, pair: Sequence[Mapping[str, Any]]) -> JudgedItem:
    metric = _metric_of(pair[0])
    return JudgedItem(
        name,
        str(pair[0]["arguments"][0][0])[:_LONGEST],
        (float(pair[0][metric]), float(pair[1][metric])),
        (_answer(pair[0]), _answer(pair[1])),
        _target(pair[0]),
    )


def _filter_of(records: Sequence[Mapping[str, Any]]) -> str:
    names = list(dict.fromkeys(str(record["filter"]) for record in records))
    return next((name for name in _FILTERS if name in names), names[0])


def _metric_of(record: Mapping[str, Any]) -> str:
    names = [n for n in record["metrics"] if isinstance(record[n], bool | int | float | np.number)]
    if not names:
        raise TaskUnavailable(f"its metrics ({', '.join(record['metrics'])}) do not judge items")
    return next((name for name in _METRICS if name in names), str(names[0]))


def _answer(record: Mapping[str, Any]) -> str:
    """The answer; among choices, the most likely one."""
    if len(record["arguments"]) == 1:
        return str(record["resps"][0][0])
    totals = [response[0][0] for response in record["resps"]]
    return str(record["arguments"][int(np.argmax(totals))][1]).strip()


def _target(record: Mapping[str, Any]) -> str:
    target = record["target"]
    if len(record["arguments"]) > 1 and isinstance(target, int):
        return str(record["arguments"][target][1]).strip()
    return str(target)
