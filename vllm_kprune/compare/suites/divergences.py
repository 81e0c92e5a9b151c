"""Find where the greedy answers of two endpoints diverge, and whether that is a tie.

If the folders of a base model and its overlay are known, answers are compared token by token, and
pruned tokens are recognised as a reason (`greedy_answers`). Otherwise answers are compared by the
texts of their tokens, or by the text alone if an endpoint does not report tokens. Prompts are
compared by the log-probability of each of their tokens.
"""

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass

from vllm_kprune.compare.endpoint.messages import Answer
from vllm_kprune.compare.suites.greedy_answers import (
    GreedyAnswer,
    Vocabularies,
    explain,
    logit_step,
)

__all__ = ["Divergence", "are_logits", "find_divergence", "lowered_places"]

# Log-probabilities do not show how large the logits were. Between 16 and 32, where the best logits
# mostly are, this is the step of bfloat16.
_TIE_GAP = 0.125
# The logits of both sides are rounded, the normaliser is not: a larger decrease needs a reason.
_LOWERED = 2 * _TIE_GAP
_MOST_DIGITS = 9  # of a token id


@dataclass(frozen=True)
class Divergence:
    """How two answers compare: `verdict` is `identical`, `tie` or `different`.

    `reason` explains a difference: `prompt`, `pruned token`, or `unexplained`. `character` is where
    the texts diverge, and `detail` names the token and its position.
    """

    verdict: str
    reason: str = ""
    character: int = 0
    detail: str = ""


def find_divergence(
    original: Answer, pruned: Answer, vocabularies: Vocabularies | None
) -> Divergence:
    """Compare two answers to one prompt; `vocabularies` are those of a model and its overlay."""
    if vocabularies is not None:
        known = vocabularies.tokenizer.tokens, range(len(vocabularies.kept_ids))
        sides = _by_id(original, known[0]), _by_id(pruned, known[1])
        if sides[0] is not None and sides[1] is not None:
            return _by_vocabulary(sides[0], sides[1], vocabularies)
    if original.text == pruned.text:
        return Divergence("identical")
    character = _common(original.text, pruned.text)
    texts = original.token_texts, pruned.token_texts
    if texts[0] is None or texts[1] is None or original.top is None:
        detail = f"from character {character} on; the endpoints report no log-probabilities"
        return Divergence("different", "unexplained", character, detail)
    # In tokens; `character` above counts characters.
    place = _common(texts[0], texts[1])
    return _by_text(original, pruned, place, character)


def are_logits(answer: Answer) -> bool:
    """Whether the server reports raw logits, as no log-probability is above zero."""
    values = (*(answer.logprobs or ()), *(v for v in answer.prompt_logprobs or () if v is not None))
    return any(value > 0 for value in values)


def lowered_places(original: Answer, pruned: Answer) -> list[int] | None:
    """Positions of the prompt where the pruned side's log-probability is lower without a reason.

    With fewer tokens to share the probability, each of them can only gain. None if the prompts have
    different numbers of tokens and cannot be compared.
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
    original: GreedyAnswer, pruned: GreedyAnswer, vocabularies: Vocabularies
) -> Divergence:
    # Log-probabilities are never above zero: a higher value means raw logits, whose own precision
    # then decides about ties.
    best = [value for place in original.best for value in place.values()]
    gap = None if any(value > 0 for value in best) else _TIE_GAP
    difference = explain(original, pruned, vocabularies, gap)
    if difference is None:
        return Divergence("identical")
    character = _common(original.text, pruned.text)
    detail = f"token {difference.position}: {difference.detail}"
    if difference.kind == "tie":
        return Divergence("tie", "", character, detail)
    return Divergence("different", difference.kind, character, detail)


def _by_text(original: Answer, pruned: Answer, place: int, character: int) -> Divergence:
    found = [
        answer.token_texts[place] if place < len(answer.token_texts or ()) else None
        for answer in (original, pruned)
        if answer.token_texts is not None
    ]
    if None in found or original.top is None or not original.top[place : place + 1]:
        return Divergence("different", "unexplained", character, f"token {place}: one answer ends")
    best = original.top[place]
    detail = f"token {place}: {found[0]!r} or {found[1]!r}"
    # `exactness` asks for the two best tokens, so this is the gap between them.
    tie = (
        best
        and set(found) <= best.keys()
        and max(best.values()) - min(best.values()) <= _step(best)
    )
    return Divergence(
        "tie" if tie else "different", "" if tie else "unexplained", character, detail
    )


def _step(best: Mapping[str, float]) -> float:
    greatest = max(best.values())
    return logit_step(greatest) if greatest > 0 else _TIE_GAP


def _by_id(answer: Answer, known: Container[int]) -> GreedyAnswer | None:
    """The answer as `greedy_answers` needs it; None if the endpoint did not report token ids.

    None as well if the vocabulary lacks one of them: the endpoint serves another model.
    """
    if answer.ids is None or answer.prompt_ids is None or answer.top is None:
        return None
    if len(answer.top) != len(answer.ids):
        return None
    names = {name for place in answer.top for name in place}
    # Texts instead of ids: the server ignored `return_tokens_as_token_ids`.
    numbers = [name.removeprefix("token_id:") for name in names]
    if not all(one.isascii() and one.isdecimal() and len(one) <= _MOST_DIGITS for one in numbers):
        return None
    if not all(i in known for i in (*answer.ids, *answer.prompt_ids, *map(int, numbers))):
        return None
    if not all(answer.top):  # a place without any token
        return None
    best = tuple(
        {int(name.removeprefix("token_id:")): value for name, value in place.items()}
        for place in answer.top
    )
    return GreedyAnswer(answer.text, answer.prompt_ids, answer.ids, best)


def _common(first: Sequence[str], second: Sequence[str]) -> int:
    """The length of the common prefix."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(first), len(second)))
