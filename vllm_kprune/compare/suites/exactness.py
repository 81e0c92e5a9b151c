"""Do both endpoints give exactly the same output? Greedy answers and log-probabilities of prompts.

Pruning leaves the logits of the kept tokens unchanged, up to rounding. Greedy answers are therefore
identical, except for ties and where the original chooses a pruned token. Requests are sent one at a
time, because batching changes the rounding.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from vllm_kprune.checkpoint.base import open_base
from vllm_kprune.checkpoint.manifest import is_overlay, load_manifest
from vllm_kprune.compare.asking import Task, answered, ask_both
from vllm_kprune.compare.endpoint.messages import Answer, Request
from vllm_kprune.compare.measurements import Example, Measurement, Metric, Span, SuiteResult
from vllm_kprune.compare.options import CommonOptions
from vllm_kprune.compare.run import Amount, Context, Suite
from vllm_kprune.compare.suites.divergences import (
    Divergence,
    are_logits,
    find_divergence,
    lowered_places,
)
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

_TOKENS, _MAX_TOKENS = 16, 64  # of an answer: by default, and whatever --max-tokens says
_PROMPTS = 60  # without --limit: beginnings of texts, and prompts for stability
_SAME = Metric("same", "greedy answers identical or tied", "share", "neither", 0.01)
_IDENTICAL = Metric("identical", "greedy answers identical", "share", "neither", 0.01)
# The smallest margin that sixty prompts can confirm, and only if none of them differs.
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
    "Compared by text, so that differences caused by pruned tokens are not recognised: name the "
    "folders of the original and of its overlay (--original-folder, --pruned-folder)."
)
_HOW = "Each endpoint gets one prompt at a time; answers have at most {} tokens."
_TIES = (
    "Two best tokens tie if their log-probabilities differ by at most 0.125, or their logits by "
    "one step of bfloat16."
)
_NORMALISED = (
    "A pruned model shares probability among fewer tokens, so a higher log-probability is not "
    "better."
)
_SILENT = "no answer of either side has any text, so there is nothing to compare"
_BY_TEXT_AS = "Compared by text, so that differences caused by pruned tokens are not recognised: "


@dataclass(frozen=True)
class Exactness(Suite):
    """The suite `exactness`."""

    name = "exactness"
    help = "greedy answers and prompt log-probabilities: identical, tie, or different"
    metrics = ("same", "identical", "unexplained", "prompt_lowered", "prompt_logprob")

    def amount(self, common: CommonOptions) -> Amount:
        """One short greedy answer to each prompt, one at a time."""
        number = len(_prompts(common))
        tokens = min(common.tokens(_TOKENS), _MAX_TOKENS)
        return Amount(number, number, tokens, together=number)

    def run(self, context: Context) -> SuiteResult:
        """Ask every prompt once, greedily, and compare the answers."""
        no_completion = context.missing("completion")
        if no_completion and (no_chat := context.missing("chat")):
            return SuiteResult(self.name, (), unavailable={"*": f"{no_completion}; {no_chat}"})
        vocabularies, by_text = _known_vocabularies(context)
        tasks, texts = _tasks(context, chat=bool(no_completion), by_id=vocabularies is not None)
        done = answered(tasks, ask_both(context, self.name, tasks, alone=True))
        pairs = [(task, (_all_text(pair[0]), _all_text(pair[1]))) for task, pair in done]
        if pairs and not any(answer.text for _, pair in pairs for answer in pair):
            return SuiteResult(self.name, (), unavailable={"*": _SILENT})
        found = [(task, pair, find_divergence(*pair, vocabularies)) for task, pair in pairs]
        compared = [(task.key, pair, divergence) for task, pair, divergence in found]
        measurements, unavailable = _measure(compared, explained=vocabularies is not None)
        if reason := context.missing("prompt_logprobs"):
            unavailable |= {_PROMPT.name: reason, _LOWERED.name: reason}
        notes = [
            _HOW.format(min(context.options.tokens(_TOKENS), _MAX_TOKENS)),
            _TIES,
            _NORMALISED,
            *([by_text] if by_text else []),
        ]
        if len(pairs) < len(tasks):
            notes.append(
                f"{len(tasks) - len(pairs)} of {len(tasks)} prompts failed and are left out."
            )
        examples = [_example(task, texts[task.key], pair, verdict) for task, pair, verdict in found]
        return SuiteResult(
            self.name, tuple(measurements), tuple(examples), unavailable, tuple(notes)
        )


def _all_text(answer: Answer) -> Answer:
    """With its reasoning, which is a part of what was generated."""
    return replace(answer, text=answer.reasoning + answer.text) if answer.reasoning else answer


def _tasks(
    context: Context, *, chat: bool, by_id: bool
) -> tuple[list[Task], dict[str, tuple[str, str]]]:
    """The tasks, and the language and text of each prompt by key."""
    prompts = _prompts(context.options)
    tasks = [
        Task(prompt.key, _request(prompt, context, chat=chat, by_id=by_id)) for prompt in prompts
    ]
    return tasks, {prompt.key: (prompt.language, prompt.text) for prompt in prompts}


def _prompts(options: CommonOptions) -> list[Prompt]:
    prompts = [
        Prompt(f"beginning/{language}/{number}", f"beginning-{language}", language, language, text)
        for language, texts in PROMPTS.items()
        if language in options.languages
        for number, text in enumerate(texts, 1)
    ]
    prompts += pick(
        stability_prompts(options.languages, None), _PROMPTS - len(prompts), options.seed
    )
    return pick(prompts, options.limit, options.seed)


def _request(prompt: Prompt, context: Context, *, chat: bool, by_id: bool) -> Request:
    """The request for a prompt; beginnings of texts are continued without a template."""
    options = context.options
    tokens = min(options.tokens(_TOKENS), _MAX_TOKENS)
    request = request_of(prompt, chat=chat, max_tokens=tokens, temperature=0.0, seed=options.seed)
    if prompt.kind.startswith("beginning") and not chat:
        request = replace(request, prompt=prompt.text)
    return replace(request, logprobs=2, prompt_logprobs=0, name_by_id=by_id)


def _known_vocabularies(context: Context) -> tuple[Vocabularies | None, str]:
    """The vocabularies, or None and a note on why answers are compared by text.

    Folders that the user named must fit. Folders that a server reported are only tried.
    """
    if reason := context.missing("token_ids"):
        return None, f"{_BY_TEXT_AS}{reason}"
    try:
        vocabularies = _vocabularies(model_folder(context, 0), model_folder(context, 1))
    # Before KPruneError, of which it is a subclass.
    except FolderUnknown as error:
        return None, f"{_BY_TEXT_AS}{error}"
    except KPruneError as error:
        if context.options.original_folder or context.options.pruned_folder:
            raise
        return None, f"{_BY_TEXT_AS}{error}"
    return vocabularies, "" if vocabularies else _BY_TEXT


def _vocabularies(original: Path, pruned: Path) -> Vocabularies | None:
    """The vocabularies of an original and its overlay; None for other pairs."""
    if not is_overlay(pruned):
        return None
    manifest = load_manifest(pruned)
    base = open_base(str(original))
    if base.rows != manifest.original_rows:
        raise KPruneError(
            f"{pruned} is not an overlay of {original}; name the folders that are served"
        )
    return Vocabularies(base.tokenizer, manifest.kept_ids, base.dtype or "bfloat16")


_Compared = tuple[str, tuple[Answer, Answer], Divergence]


def _measure(
    found: Sequence[_Compared], *, explained: bool
) -> tuple[list[Measurement], dict[str, str]]:
    if not found:
        return [], {"*": "no prompt was answered by both sides"}
    items = tuple(key for key, _, _ in found)
    verdicts = [divergence for _, _, divergence in found]
    measurements = [
        _share(_SAME, items, [divergence.verdict != "different" for divergence in verdicts]),
        _share(_IDENTICAL, items, [divergence.verdict == "identical" for divergence in verdicts]),
        _unexplained(items, verdicts, explained=explained),
    ]
    lowered = [(key, lowered_places(*pair)) for key, pair, _ in found]
    known = [(key, places) for key, places in lowered if places is not None]
    unavailable = {}
    if known:
        # Only prompts whose tokens correspond: a sum over other tokens cannot be compared.
        names = tuple(key for key, _ in known)
        measurements.append(_share(_LOWERED, names, [bool(places) for _, places in known]))
        pairs = {key: pair for key, pair, _ in found}
        if any(are_logits(answer) for key in names for answer in pairs[key]):
            unavailable[_PROMPT.name] = "a server reports raw logits (--logprobs-mode)"
        else:
            sides = [[_sum(pairs[key][side]) for key in names] for side in (0, 1)]
            measurements.append(Measurement(_PROMPT, names, *map(np.array, sides)))
    else:
        reason = "no prompt has the same tokens with log-probabilities on both sides"
        unavailable |= {_LOWERED.name: reason, _PROMPT.name: reason}
    return measurements, unavailable


def _unexplained(
    items: tuple[str, ...], verdicts: Sequence[Divergence], *, explained: bool
) -> Measurement:
    """The share of unexplained answers, judged against the original, which has none.

    It is informational if the vocabularies are unknown, since differences that pruned tokens cause
    then count as unexplained.
    """
    metric = _UNEXPLAINED if explained else replace(_UNEXPLAINED, better="neither")
    flags = _share(metric, items, [divergence.reason == "unexplained" for divergence in verdicts])
    # `_share` makes a metric of the pair; here the same flags are the pruned side.
    return replace(flags, original=np.zeros_like(flags.original), pruned=flags.original)


def _share(metric: Metric, items: tuple[str, ...], flags: Sequence[bool]) -> Measurement:
    return Measurement(metric, items, np.array(flags, np.float64).reshape(-1, 1), None)


def _sum(answer: Answer) -> tuple[float, float]:
    logprobs = [one for one in answer.prompt_logprobs or () if one is not None]
    # The columns of a ratio: nats, and number of tokens. The first token has no log-probability.
    return sum(logprobs), float(len(logprobs))


def _example(
    task: Task, asked: tuple[str, str], pair: tuple[Answer, Answer], divergence: Divergence
) -> Example:
    language, prompt = asked
    labels = {"language": language, "verdict": divergence.verdict}
    spans: tuple[tuple[Span, ...], tuple[Span, ...]] = ((), ())
    if divergence.verdict != "identical":
        labels["reason"] = divergence.reason or divergence.verdict
        # No span on a side whose answer ends where the other one goes on.
        original, pruned = (
            (Span(divergence.character, len(answer.text), divergence.detail),)
            if divergence.character < len(answer.text)
            else ()
            for answer in pair
        )
        spans = original, pruned
    return Example(task.key, prompt, (pair[0].text, pair[1].text), labels, spans)
