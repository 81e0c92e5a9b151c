"""Ask both endpoints the items of a task of lm-eval, and pair the judged items of the two sides."""

import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vllm_kprune.compare.run import Context
from vllm_kprune.compare.suites.lm_eval_loading import (
    TaskUnavailable,
    load_task,
    reasons_of,
    without_bars,
)
from vllm_kprune.compare.suites.lm_eval_model import EndpointModel, PairOfModels, request_name

__all__ = ["JudgedItem", "judge_task"]

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


def judge_task(
    context: Context, suite: str, task: str, data: Path | None, cache_folder: Path
) -> tuple[list[JudgedItem], str]:
    """Every item that both sides answered, and a note on how the task was asked."""
    loaded = load_task(task, data, cache_folder)
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
    for side, client in enumerate(context.clients):
        models = context.get(side, "/v1/models")
        rows = models.get("data") if isinstance(models, dict) else None
        for row in rows if isinstance(rows, list) else ():
            if isinstance(row, dict) and row.get("id") == client.endpoint.model:
                length = row.get("max_model_len")
                lengths += [length // 2] if isinstance(length, int) and length > 1 else []
    return min(lengths, default=None)


def _drawn(loaded: Mapping[str, Any], limit: int | None, seed: int) -> dict[str, list[int]]:
    """The documents to use of each part, drawn evenly over all parts; empty parts are omitted."""
    with reasons_of("a task"):
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
    with reasons_of(", ".join(samples)), without_bars():
        found = evaluate(
            lm=EndpointModel(pair, side),
            task_dict={"tasks": dict(parts), "groups": {}, "group_map": {}},
            samples=dict(samples),
            # kprune computes the intervals, from the single items.
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
        # Both sides judged the same documents, but lm-eval may list them in another order.
        # In any order: the statistics sort items by name.
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
