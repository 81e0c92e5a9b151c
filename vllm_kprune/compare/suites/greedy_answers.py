"""Do both models answer alike, and if not, why? Greedy answers, compared token by token.

Pruning leaves the kept tokens' logits as they were up to the rounding of a matrix product, so at
the first place where two answers part there are three honest reasons: the prompt itself needs a
token that was pruned; the original chose one; or the two best tokens tie within the precision of
the logits. Anything else is `unexplained`. Beyond that place the contexts differ too.

Ties are told by logits, of servers that run with `--logprobs-mode raw_logits`, whose precision
depends on their size; or by log-probabilities, with a gap that counts as a tie.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vllm_kprune.tokenizer.bpe import BpeTokenizer
from vllm_kprune.vocabulary.scripts import main_script

__all__ = ["Answer", "Difference", "Vocabularies", "explain", "logit_step"]

# Bits of the significand, the hidden one included, of the types that models compute logits in.
_SIGNIFICAND_BITS = {"bfloat16": 8, "float16": 11, "float32": 24}


@dataclass(frozen=True)
class Answer:
    """A greedy answer as ids of the server's own vocabulary; `best` are the two best logits by id
    at each place."""

    text: str
    prompt_ids: tuple[int, ...]
    ids: tuple[int, ...]
    best: tuple[Mapping[int, float], ...]


@dataclass(frozen=True)
class Difference:
    """Where two answers part (0 is the first generated token) and why.

    `kind` is `prompt`, `pruned token`, `tie` or `unexplained`; `gap` is between the original's two
    best logits there.
    """

    kind: str
    position: int
    detail: str
    gap: float | None = None


@dataclass(frozen=True)
class Vocabularies:
    """The original tokenizer, and the original id of each id of the pruned model."""

    tokenizer: BpeTokenizer
    kept_ids: Sequence[int]
    dtype: str = "bfloat16"

    def describe(self, token_id: int) -> str:
        """The text of a token of the original, or its bytes where it is no text, and its script."""
        spelled = self.tokenizer.token_bytes(token_id)
        try:
            text = repr(spelled.decode())
        except UnicodeDecodeError:
            text = repr(spelled)
        return f"{text} ({main_script(spelled)}, id {token_id})"


def explain(
    original: Answer, pruned: Answer, words: Vocabularies, tie_gap: float | None = None
) -> Difference | None:
    """The first difference between two answers to one prompt; None if there is none.

    The two best tokens tie within `tie_gap`, or else within the precision of their logits.
    """
    kept = words.kept_ids
    if original.prompt_ids != tuple(kept[i] for i in pruned.prompt_ids):
        return Difference("prompt", 0, _prompt_detail(original, words))
    answer = [kept[i] for i in pruned.ids]
    places = zip(original.ids, answer, strict=False)
    for position, (expected, found) in enumerate(places):
        if expected != found:
            return _explain_place(original, position, found, words, tie_gap)
    if len(answer) != len(original.ids):
        detail = f"{len(original.ids)} tokens against {len(answer)}"
        return Difference("unexplained", min(len(answer), len(original.ids)), detail)
    return None


def logit_step(value: float, dtype: str = "bfloat16") -> float:
    """Distance between neighbouring numbers of a type at `value`: what it can tell apart.

    >>> logit_step(20.0)
    0.125
    """
    bits = _SIGNIFICAND_BITS[dtype]
    return 2.0 ** (math.floor(math.log2(abs(value))) + 1 - bits) if value else 0.0


def _explain_place(
    original: Answer, position: int, found: int, words: Vocabularies, tie_gap: float | None
) -> Difference:
    expected, best = original.ids[position], original.best[position]
    gap = max(best.values()) - min(best.values())
    if expected not in set(words.kept_ids):
        detail = f"the original chose {words.describe(expected)}"
        return Difference("pruned token", position, detail, gap)
    detail = f"{words.describe(expected)} or {words.describe(found)}"
    step = logit_step(max(best.values()), words.dtype) if tie_gap is None else tie_gap
    tie = {expected, found} <= best.keys() and gap <= step
    return Difference("tie" if tie else "unexplained", position, detail, gap)


def _prompt_detail(original: Answer, words: Vocabularies) -> str:
    kept = set(words.kept_ids)
    missing = [words.describe(i) for i in original.prompt_ids if i not in kept]
    if missing:
        return f"the prompt needs {', '.join(missing)}"
    return "the prompt is encoded differently although all of its tokens are kept"
