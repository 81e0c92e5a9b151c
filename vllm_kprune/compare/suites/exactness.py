"""Do both endpoints say the very same? Greedy answers and the prompt's log-probabilities.

Pruning leaves the kept tokens' logits as they were, up to rounding; so greedy answers are identical
but for ties, and for places where the original chose a pruned token. Requests go out one at a time:
batches change the rounding.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from vllm_kprune.checkpoint.base import open_base
from vllm_kprune.checkpoint.manifest import is_overlay, load_manifest
from vllm_kprune.compare.endpoint.messages import Answer, Request
from vllm_kprune.compare.measurements import Example, Measurement, Metric, Span, SuiteResult
from vllm_kprune.compare.run import Context, Task, answered, ask_both
from vllm_kprune.compare.suites.divergences import Parting, are_logits, lowered_places, part
from vllm_kprune.compare.suites.greedy_answers import Vocabularies
from vllm_kprune.compare.suites.model_folders import FolderUnknown, model_folder
from vllm_kprune.compare.suites.prompts import PROMPTS
from vllm_kprune.compare.suites.stability_prompts import (
    Prompt,
    pick,
    request_of,
    stability_prompts,
)
from vllm_kprune.errors import KPruneError

__all__ = ["Exactness"]

_MAX_TOKENS = 64
_PROMPTS = 60  # of those that are written for stability, without --limit
_SAME = Metric("same", "greedy answers identical or tied", "share", "neither", 0.01)
_IDENTICAL = Metric("identical", "greedy answers identical", "share", "neither", 0.01)
# The margin is what some sixty prompts can show; none of them may differ then.
_UNEXPLAINED = Metric("unexplained", "greedy answers unexplained", "share", "lower", 0.05)
_LOWERED = Metric(
    "prompt_lowered",
    "prompts with a lowered token",
    "share",
    "neither",
    0.0,
)
_PROMPT = Metric(
    "prompt_logprob", "log-probability of a prompt token", "nats", "neither", 0.01, "ratio"
)
_BY_TEXT = (
    "Compared by text, without pruning's own reasons: name the folders of the original and of its "
    "overlay (--original-folder, --pruned-folder)."
)
_TIES = "The two best tokens tie within 0.125 of log-probability, or one step of bfloat16 logits."
_NORMALISED = "A pruned model shares probability among fewer tokens: higher is not better here."


@dataclass(frozen=True)
class Exactness:
    """The suite."""

    name: str = "exactness"
    help: str = "greedy answers and prompt log-probabilities: identical, tie, or different"
    metrics: tuple[str, ...] = (
        *("same", "identical", "unexplained", "prompt_lowered", "prompt_logprob"),
    )

    def run(self, context: Context) -> SuiteResult:
        """Ask everything once, greedily, and compare."""
        no_completion = context.missing("completion")
        if no_completion and (no_chat := context.missing("chat")):
            return SuiteResult(self.name, (), unavailable={"*": f"{no_completion}; {no_chat}"})
        words, by_text = _words(context)
        tasks, texts = _tasks(context, chat=bool(no_completion), by_id=words is not None)
        pairs = answered(tasks, ask_both(context, self.name, tasks, concurrency=1))
        found = [(task, pair, part(*pair, words)) for task, pair in pairs]
        measured = [(task.key, pair, parting) for task, pair, parting in found]
        measurements, unavailable = _measure(measured, explained=words is not None)
        if reason := context.missing("prompt_logprobs"):
            unavailable |= {_PROMPT.name: reason, _LOWERED.name: reason}
        notes = [_TIES, _NORMALISED, *([by_text] if by_text else [])]
        if len(pairs) < len(tasks):
            notes.append(f"{len(tasks) - len(pairs)} of {len(tasks)} prompts failed, left out.")
        examples = [_example(task, texts[task.key], pair, verdict) for task, pair, verdict in found]
        return SuiteResult(
            self.name, tuple(measurements), tuple(examples), unavailable, tuple(notes)
        )


def _tasks(
    context: Context, *, chat: bool, by_id: bool
) -> tuple[list[Task], dict[str, tuple[str, str]]]:
    """The tasks, and (language, prompt) of each by key."""
    options = context.options
    prompts = [
        Prompt(f"beginning/{language}/{number}", f"beginning-{language}", language, language, text)
        for language, texts in PROMPTS.items()
        if language in options.languages
        for number, text in enumerate(texts, 1)
    ]
    more = stability_prompts(options.languages, None)
    prompts += pick(more, _PROMPTS, options.seed)
    tasks = []
    for prompt in pick(prompts, options.limit, options.seed):
        tasks.append(Task(prompt.key, _request(prompt, context, chat=chat, by_id=by_id)))
    return tasks, {prompt.key: (prompt.language, prompt.text) for prompt in prompts}


def _request(prompt: Prompt, context: Context, *, chat: bool, by_id: bool) -> Request:
    """Beginnings are continued as they are."""
    options = context.options
    tokens = min(options.max_tokens, _MAX_TOKENS)
    request = request_of(prompt, chat=chat, max_tokens=tokens, temperature=0.0, seed=options.seed)
    if prompt.kind.startswith("beginning") and not chat:
        request = replace(request, prompt=prompt.text)
    return replace(request, logprobs=2, prompt_logprobs=0, name_by_id=by_id)


def _words(context: Context) -> tuple[Vocabularies | None, str]:
    """The vocabularies, or None and why answers are compared by text. Folders that the user named
    must fit; those that a server told of are only tried."""
    if reason := context.missing("token_ids"):
        return None, f"Compared by text, without pruning's own reasons ({reason})."
    try:
        words = _vocabularies(model_folder(context, 0), model_folder(context, 1))
    except FolderUnknown as error:
        return None, f"Compared by text, without pruning's own reasons: {error}"
    except KPruneError as error:
        if context.options.original_folder or context.options.pruned_folder:
            raise
        return None, f"Compared by text, without pruning's own reasons: {error}"
    return words, "" if words else _BY_TEXT


def _vocabularies(original: Path, pruned: Path) -> Vocabularies | None:
    """Of an original and its overlay; None for other pairs."""
    if not is_overlay(pruned):
        return None
    manifest = load_manifest(pruned)
    base = open_base(str(original))
    if base.rows != manifest.original_rows:
        raise KPruneError(f"{pruned} is no overlay of {original}; name the folders as served")
    return Vocabularies(base.tokenizer, manifest.kept_ids, base.dtype or "bfloat16")


_Found = tuple[str, tuple[Answer, Answer], Parting]


def _measure(
    found: Sequence[_Found], *, explained: bool
) -> tuple[list[Measurement], dict[str, str]]:
    if not found:
        return [], {"*": "no prompt was answered by both sides"}
    items = tuple(key for key, _, _ in found)
    verdicts = [parting for _, _, parting in found]
    measurements = [
        _share(_SAME, items, [parting.verdict != "different" for parting in verdicts]),
        _share(_IDENTICAL, items, [parting.verdict == "identical" for parting in verdicts]),
        _unexplained(items, verdicts, explained=explained),
    ]
    lowered = [(key, lowered_places(*pair)) for key, pair, _ in found]
    known = [(key, places) for key, places in lowered if places is not None]
    unavailable = {}
    if known:
        names = tuple(key for key, _ in known)
        measurements.append(_share(_LOWERED, names, [bool(places) for _, places in known]))
        pairs = {key: pair for key, pair, _ in found}
        if any(are_logits(answer) for key in names for answer in pairs[key]):
            unavailable[_PROMPT.name] = "a server tells raw logits (--logprobs-mode)"
        else:
            sides = [[_sum(pairs[key][side]) for key in names] for side in (0, 1)]
            measurements.append(Measurement(_PROMPT, names, *map(np.array, sides)))
    else:
        reason = "no prompt has the same tokens, with their log-probabilities, on both sides"
        unavailable |= {_LOWERED.name: reason, _PROMPT.name: reason}
    return measurements, unavailable


def _unexplained(
    items: tuple[str, ...], verdicts: Sequence[Parting], *, explained: bool
) -> Measurement:
    """Judged against the original, which explains itself; only told where pruning's own reasons
    could not be looked up, since they count as unexplained then."""
    metric = _UNEXPLAINED if explained else replace(_UNEXPLAINED, better="neither")
    flags = _share(metric, items, [parting.reason == "unexplained" for parting in verdicts])
    return replace(flags, original=np.zeros_like(flags.original), pruned=flags.original)


def _share(metric: Metric, items: tuple[str, ...], values: Sequence[bool]) -> Measurement:
    return Measurement(metric, items, np.array(values, np.float64).reshape(-1, 1), None)


def _sum(answer: Answer) -> tuple[float, float]:
    values = [value for value in answer.prompt_logprobs or () if value is not None]
    return sum(values), float(len(values))


def _example(
    task: Task, asked: tuple[str, str], pair: tuple[Answer, Answer], parting: Parting
) -> Example:
    language, prompt = asked
    labels = {"language": language, "verdict": parting.verdict}
    spans: tuple[tuple[Span, ...], tuple[Span, ...]] = ((), ())
    if parting.verdict != "identical":
        labels["reason"] = parting.reason or parting.verdict
        original, pruned = (
            (Span(parting.character, len(answer.text), parting.detail),)
            if parting.character < len(answer.text)
            else ()
            for answer in pair
        )
        spans = original, pruned
    return Example(task.key, prompt, (pair[0].text, pair[1].text), labels, spans)
