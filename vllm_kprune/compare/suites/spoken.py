"""What an answer says, apart from what the model thought before it.

Servers with a reasoning parser send reasoning in a field of its own; others leave it in the answer,
between tags. Some chat templates open the tag in the prompt, so that an answer has only the closing
one. Only what follows the reasoning is judged.

A pair of which neither side says anything (both called a tool, or both were cut by the token limit
before the answer began) is left out: two times nothing is not "equal". Where only one side is
silent, the pair counts, and that side's answer is empty.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TypeVar

from vllm_kprune.compare.endpoint.messages import Answer

__all__ = ["spoken", "without_reasoning"]

T = TypeVar("T")
_TAGS = ("think", "thinking", "thought", "thoughts", "reasoning", "reflection")
_NAMES = "|".join(_TAGS)
_OPENED = re.compile(rf"\s*(?:<(?:{_NAMES})>|\[THINK\])")
_CLOSING = re.compile(rf"</(?:{_NAMES})>|\[/THINK\]")
_NO_THINKING = """--extra-body '{"chat_template_kwargs": {"enable_thinking": false}}'"""


def spoken(
    rows: Sequence[tuple[T, tuple[Answer, Answer]]],
) -> tuple[list[tuple[T, tuple[Answer, Answer]]], list[str]]:
    """The rows with only what was said, without those in which neither side says anything.

    The notes begin with warnings. An answer that was cut inside reasoning whose tag the prompt
    opened looks like any text; it is recognised by the side's other answers, which close the tag.
    """
    sides = [[pair[side] for _, pair in rows] for side in (0, 1)]
    opened = [any(_is_opened_by_prompt(answer) for answer in side) for side in sides]
    said = [
        [without_reasoning(answer, inside=inside) for answer in side]
        for side, inside in zip(sides, opened, strict=True)
    ]
    pairs = list(zip(*said, strict=True))
    kept = [
        (task, pair)
        for (task, _), pair in zip(rows, pairs, strict=True)
        if not all(map(_is_silent, pair))
    ]
    return kept, [*_notes(said), *_left_out(len(rows) - len(kept), len(rows))]


def without_reasoning(answer: Answer, *, inside: bool = False) -> Answer:
    r"""The answer with inline reasoning moved to `reasoning`.

    `inside`: the prompt opens the tag, so that an answer that was cut and closes none is reasoning.

    >>> without_reasoning(Answer(text="<think>hm</think>\n\nYes.")).text
    'Yes.'
    """
    thought, text = _split(answer.text, inside=inside and answer.finish_reason == "length")
    if text == answer.text:
        return answer
    return replace(answer, text=text.lstrip(), reasoning=(answer.reasoning + thought).strip())


def _split(text: str, *, inside: bool) -> tuple[str, str]:
    """Reasoning and what follows it; a model may think in several blocks before it answers."""
    thoughts, begun = "", False
    while opened := _OPENED.match(text):
        begun = True
        end = _CLOSING.search(text, opened.end())
        thoughts += text[opened.end() : end.start() if end else len(text)]
        text = text[end.end() :] if end else ""
    if begun:
        return thoughts, text
    if end := _CLOSING.search(text):
        return text[: end.start()], text[end.end() :]
    return (text, "") if inside else ("", text)


def _is_opened_by_prompt(answer: Answer) -> bool:
    return not _OPENED.match(answer.text) and bool(_CLOSING.search(answer.text))


def _is_silent(answer: Answer) -> bool:
    """Whether the answer never began, for a reason that is no flaw of its text."""
    return not answer.text.strip() and bool(answer.tool_calls or _is_cut(answer))


def _is_cut(answer: Answer) -> bool:
    return answer.finish_reason == "length"


def _notes(sides: Sequence[Sequence[Answer]]) -> Iterator[str]:
    for name, answers in zip(("original", "pruned"), sides, strict=True):
        silent = [answer for answer in answers if _is_silent(answer)]
        cut = sum(not answer.tool_calls for answer in silent)
        called, total = len(silent) - cut, len(answers)
        if cut:
            yield (
                f"WARNING: {cut:,} of {total:,} answers of the {name} side were cut by the token "
                "limit before they began; raise --max-tokens, or turn thinking off, for example "
                f"with {_NO_THINKING}"
            )
        if called:
            yield (
                f"WARNING: {called:,} of {total:,} answers of the {name} side call a tool instead "
                "of answering, so there is no text to judge"
            )
    thinking = [sum(bool(answer.reasoning) for answer in answers) for answers in sides]
    if any(thinking):
        yield (
            f"{thinking[0]:,} answers of the original and {thinking[1]:,} of the pruned side begin "
            "with reasoning; only what follows it is judged."
        )


def _left_out(number: int, total: int) -> list[str]:
    if not number:
        return []
    return [f"WARNING: {number:,} of {total:,} pairs say nothing on either side and are left out"]
