"""How `input` asks about a passage, and measures the quality of the answers."""

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vllm_kprune.compare.endpoint.messages import Answer, Request
from vllm_kprune.compare.suites.likelihood import (
    context_request,
    likelihood,
    split_space,
    whole_request,
)
from vllm_kprune.compare.suites.passages import Passage

__all__ = ["GoldContained", "GoldLogprob", "contains", "marked"]

_LABELS = {"ko": ("질문: ", "정답:"), "zh": ("问题：", "答案：")}
_ANSWER_TOKENS = 24
_MARKS = re.compile(r"(\\*)(</?kprune)")


@dataclass(frozen=True)
class GoldLogprob:
    """Quality as the log-probability of the gold answer in the prompt."""

    title: str = "log-probability of the gold answer"
    unit: str = "nats/token"
    margin: float = 0.05

    def requests(self, passage: Passage, rate: float | None, seed: int) -> dict[str, Request]:
        before, answer = split_space(prompt_of(passage), " " + passage.answer)
        extra = _pruning(rate)
        return {
            "context": context_request(before, seed, extra),
            "whole": whole_request(before, answer, seed, extra),
        }

    def quality(self, answers: Mapping[str, Answer], gold: str) -> float | None:
        known = likelihood(answers["context"], answers["whole"])
        return known.mean if known else None


@dataclass(frozen=True)
class GoldContained:
    """Quality as whether a greedy answer contains the gold answer."""

    title: str = "answers that contain the gold answer"
    unit: str = "share"
    margin: float = 0.02

    def requests(self, passage: Passage, rate: float | None, seed: int) -> dict[str, Request]:
        prompt, tokens, extra = prompt_of(passage), _ANSWER_TOKENS, _pruning(rate)
        request = Request("completion", prompt=prompt, max_tokens=tokens, seed=seed, extra=extra)
        return {"context": request}

    def quality(self, answers: Mapping[str, Answer], gold: str) -> float | None:
        return float(contains(answers["context"].text, gold))


def prompt_of(passage: Passage) -> str:
    """The marked passage, the question, and the beginning of the line with the answer."""
    ask, answer = _LABELS.get(passage.language, ("Question: ", "Answer:"))
    return f"{marked(passage.context)}\n{ask}{passage.question}\n{answer}"


def marked(text: str) -> str:
    r"""The text between marks of the input pruner; whatever looks like a mark in it is escaped.

    >>> marked("a <kprune> b")
    '<kprune>a \\<kprune> b</kprune>'
    """
    # A backslash escapes a mark, so backslashes before a mark are doubled. Those at the end would
    # otherwise escape the closing mark.
    escaped = _MARKS.sub(lambda found: found[1] * 2 + "\\" + found[2], text)
    slashes = len(escaped) - len(escaped.rstrip("\\"))
    return f"<kprune>{escaped}{slashes * chr(92)}</kprune>"


def contains(answer: str, gold: str) -> bool:
    """Whether the answer contains the gold one, regardless of case, width and spaces.

    >>> contains("It is  Half-Timbered.", "half-timbered")
    True
    """
    return _plain(gold) in _plain(answer)


def _plain(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def _pruning(rate: float | None) -> dict[str, Any]:
    options = {"kprune_keep": "off"} if rate is None else {"kprune_keep": rate}
    # A minimum of 1 token: the pruner leaves texts below its own minimum as they are, and then
    # nothing would be measured.
    return {"vllm_xargs": options | ({} if rate is None else {"kprune_min_tokens": 1})}
