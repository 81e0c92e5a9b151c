"""Where the greedy answers of two endpoints part, and whether that is a tie.

With the folders of a base model and its overlay, token by token and with pruning's own reasons
(`greedy_answers`). Without, by the texts of tokens, or by the text alone where an endpoint tells
no tokens. Prompts are compared by the log-probability of each of their tokens.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vllm_kprune.compare.endpoint.messages import Answer
from vllm_kprune.compare.suites import greedy_answers as answers
from vllm_kprune.compare.suites.greedy_answers import Vocabularies, explain, logit_step

__all__ = ["Parting", "are_logits", "lowered_places", "part"]

# Log-probabilities hide how large the logits were that they came from. Between 16 and 32, where
# best logits mostly are, bfloat16 tells numbers apart by this.
_TIE_GAP = 0.125
# Both sides are rounded, the normaliser is not: what may be lower without a reason.
_LOWERED = 2 * _TIE_GAP


@dataclass(frozen=True)
class Parting:
    """How two answers compare: `verdict` is `identical`, `tie` or `different`.

    `reason` of a difference: `prompt`, `pruned token`, or `unexplained`. `character` is where the
    texts part, `detail` tells the token and its place.
    """

    verdict: str
    reason: str = ""
    character: int = 0
    detail: str = ""


def part(original: Answer, pruned: Answer, words: Vocabularies | None) -> Parting:
    """Compare two answers to one prompt; `words` of a base model and its overlay."""
    if words is not None:
        sides = _by_id(original), _by_id(pruned)
        if sides[0] is not None and sides[1] is not None:
            return _by_vocabulary(sides[0], sides[1], words)
    if original.text == pruned.text:
        return Parting("identical")
    character = _common(original.text, pruned.text)
    texts = original.token_texts, pruned.token_texts
    if texts[0] is None or texts[1] is None or original.top is None:
        detail = f"from character {character} on; the endpoints tell no log-probabilities"
        return Parting("different", "unexplained", character, detail)
    place = _common(texts[0], texts[1])
    return _by_text(original, pruned, place, character)


def are_logits(answer: Answer) -> bool:
    """Does the server run with raw logits? No log-probability is above zero."""
    values = (*(answer.logprobs or ()), *(v for v in answer.prompt_logprobs or () if v is not None))
    return any(value > 0 for value in values)


def lowered_places(original: Answer, pruned: Answer) -> list[int] | None:
    """Places of the prompt where the pruned side's log-probability is lower for no reason; None
    where they cannot be compared, as the prompts have different numbers of tokens.

    With fewer tokens to share it with, each of them can only get more.
    """
    first, second = original.prompt_logprobs, pruned.prompt_logprobs
    if first is None or second is None or len(first) != len(second):
        return None
    return [
        place
        for place, (before, after) in enumerate(zip(first, second, strict=True))
        if before is not None and after is not None and after < before - _LOWERED
    ]


def _by_vocabulary(
    original: answers.Answer, pruned: answers.Answer, words: Vocabularies
) -> Parting:
    best = [value for place in original.best for value in place.values()]
    gap = None if any(value > 0 for value in best) else _TIE_GAP
    difference = explain(original, pruned, words, gap)
    if difference is None:
        return Parting("identical")
    character = _common(original.text, pruned.text)
    detail = f"token {difference.position}: {difference.detail}"
    if difference.kind == "tie":
        return Parting("tie", "", character, detail)
    return Parting("different", difference.kind, character, detail)


def _by_text(original: Answer, pruned: Answer, place: int, character: int) -> Parting:
    found = [
        answer.token_texts[place] if place < len(answer.token_texts or ()) else None
        for answer in (original, pruned)
        if answer.token_texts is not None
    ]
    if None in found or original.top is None:
        return Parting("different", "unexplained", character, f"token {place}: one answer ends")
    best = original.top[place]
    detail = f"token {place}: {found[0]!r} or {found[1]!r}"
    tie = set(found) <= best.keys() and max(best.values()) - min(best.values()) <= _step(best)
    return Parting("tie" if tie else "different", "" if tie else "unexplained", character, detail)


def _step(best: Mapping[str, float]) -> float:
    greatest = max(best.values())
    return logit_step(greatest) if greatest > 0 else _TIE_GAP


def _by_id(answer: Answer) -> answers.Answer | None:
    """The form that `greedy_answers` compares; None where the endpoint told no ids."""
    if answer.ids is None or answer.prompt_ids is None or answer.top is None:
        return None
    if len(answer.top) != len(answer.ids):
        return None
    names = {name for place in answer.top for name in place}
    if not all(name.removeprefix("token_id:").isdecimal() for name in names):
        return None
    best = tuple(
        {int(name.removeprefix("token_id:")): value for name, value in place.items()}
        for place in answer.top
    )
    return answers.Answer(answer.text, answer.prompt_ids, answer.ids, best)


def _common(first: Sequence[str], second: Sequence[str]) -> int:
    """Length of the common beginning."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(first), len(second)))
