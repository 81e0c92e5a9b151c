"""Explain why two greedy answers differ, token by token.

Pruning leaves the logits of the kept tokens unchanged, up to the rounding of a matrix product. At
the first position where two answers diverge, there are therefore three legitimate reasons: the
prompt needs a pruned token, the original chose a pruned token, or the two best tokens tie within
the precision of the logits. Anything else is `unexplained`. After that position the contexts
differ, so nothing more is compared.

A tie is recognised from logits, if the servers run with `--logprobs-mode raw_logits`; their
precision depends on their size. Otherwise it is recognised from log-probabilities, with a fixed gap
that counts as a tie.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vllm_kprune.tokenizer.bpe import BpeTokenizer
from vllm_kprune.vocabulary.scripts import main_script

__all__ = ["Difference", "GreedyAnswer", "Vocabularies", "explain", "logit_step"]

# Bits of the significand, including the hidden one, of the types in which models compute logits.
_SIGNIFICAND_BITS = {"bfloat16": 8, "float16": 11, "float32": 24}


@dataclass(frozen=True)
class GreedyAnswer:
    """A greedy answer as token ids of the server's own vocabulary.

    `best` has the two best logits at each position, by id.
    """

    text: str
    prompt_ids: tuple[int, ...]
    ids: tuple[int, ...]
    best: tuple[Mapping[int, float], ...]


@dataclass(frozen=True)
class Difference:
    """Where two answers diverge (0 is the first generated token), and why.

    `kind` is `prompt`, `pruned token`, `tie` or `unexplained`. `gap` is the difference between the
    original's two best logits at that position.
    """

    kind: str
    position: int
    detail: str
    gap: float | None = None


@dataclass(frozen=True)
class Vocabularies:
    """The original tokenizer, and the original id for each id of the pruned model."""

    tokenizer: BpeTokenizer
    kept_ids: Sequence[int]
    dtype: str = "bfloat16"

    def describe(self, token_id: int) -> str:
        """A token of the original: its text, or its bytes if they are not text, and its script."""
        spelled = self.tokenizer.token_bytes(token_id)
        try:
            text = repr(spelled.decode())
        except UnicodeDecodeError:
            text = repr(spelled)
        return f"{text} ({main_script(spelled)}, id {token_id})"


def explain(
    original: GreedyAnswer,
    pruned: GreedyAnswer,
    vocabularies: Vocabularies,
    tie_gap: float | None = None,
) -> Difference | None:
    """The first difference between two answers to one prompt; None if there is none.

    The two best tokens tie if their gap is at most `tie_gap`, or by default the precision of their
    logits.
    """
    # Ids of the pruned model are translated here; from now on, all ids are the original's.
    kept = vocabularies.kept_ids
    if original.prompt_ids != tuple(kept[i] for i in pruned.prompt_ids):
        return Difference("prompt", 0, _prompt_detail(original, vocabularies))
    answer = [kept[i] for i in pruned.ids]
    # Not strict: a difference in length counts only if one answer begins with the other.
    places = zip(original.ids, answer, strict=False)
    for position, (expected, found) in enumerate(places):
        if expected != found:
            return _explain_place(original, position, found, vocabularies, tie_gap)
    if len(answer) != len(original.ids):
        detail = f"{len(original.ids)} tokens against {len(answer)}"
        return Difference("unexplained", min(len(answer), len(original.ids)), detail)
    return None


def logit_step(value: float, dtype: str = "bfloat16") -> float:
    """Distance between neighbouring numbers of a type near `value`, its precision.

    >>> logit_step(20.0)
    0.125
    """
    if not value or not math.isfinite(value):
        return 0.0
    return 2.0 ** (math.floor(math.log2(abs(value))) + 1 - _SIGNIFICAND_BITS[dtype])


def _explain_place(
    original: GreedyAnswer,
    position: int,
    found: int,
    vocabularies: Vocabularies,
    tie_gap: float | None,
) -> Difference:
    expected, best = original.ids[position], original.best[position]
    gap = max(best.values()) - min(best.values())
    # Before the tie: a pruned token explains the difference whatever the gap is.
    if expected not in set(vocabularies.kept_ids):
        detail = f"the original chose {vocabularies.describe(expected)}"
        return Difference("pruned token", position, detail, gap)
    detail = f"{vocabularies.describe(expected)} or {vocabularies.describe(found)}"
    step = logit_step(max(best.values()), vocabularies.dtype) if tie_gap is None else tie_gap
    tie = {expected, found} <= best.keys() and gap <= step
    return Difference("tie" if tie else "unexplained", position, detail, gap)


def _prompt_detail(original: GreedyAnswer, vocabularies: Vocabularies) -> str:
    kept = set(vocabularies.kept_ids)
    missing = [vocabularies.describe(i) for i in original.prompt_ids if i not in kept]
    if missing:
        return f"the prompt needs {', '.join(missing)}"
    return "the prompt is encoded differently although all its tokens are kept"
