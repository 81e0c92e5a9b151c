"""Which merges build each token, and so what a text loses with each token that is dropped.

BPE builds "the" from t, h, e by the merges th and the. If both are dropped, a text with "the" needs
two tokens more; if only "the" is dropped, one. So what a vocabulary costs is a sum over the dropped
tokens: of each, how often texts need it, as itself or on the way to a longer token. A step is
needed at least as often as what is built from it, so the tokens that are needed most, up to any
number, include their own ancestors.
"""

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vllm_kprune.arrays import Floats
from vllm_kprune.tokenizer.bpe import BpeTokenizer

__all__ = ["MergeSteps", "merge_steps"]


@dataclass(frozen=True)
class MergeSteps:
    """Pairs of a token (`owners`) and a step on the way to it (`steps`), as ids.

    The last step of a token is the token itself. A step that is needed twice occurs twice, and a
    character that is spelled in n bytes without its token occurs n - 1 times.
    """

    owners: npt.NDArray[np.int64]
    steps: npt.NDArray[np.int64]

    def pairs(self) -> Iterator[tuple[int, int]]:
        """Each owner with one of its steps."""
        return zip(self.owners.tolist(), self.steps.tolist(), strict=True)

    def within(self, ids: npt.NDArray[np.int64]) -> "MergeSteps":
        """Only the steps that are among `ids`, of all owners."""
        found = np.isin(self.steps, ids)
        return MergeSteps(self.owners[found], self.steps[found])

    def uses(self, rates: Floats) -> Floats:
        """How many tokens more are needed without each id, if tokens occur as in `rates`.

        Both are float64 [ids]. Not counted are neighbours that then merge differently.
        """
        uses: Floats = np.bincount(
            self.steps, weights=rates[self.owners], minlength=len(rates)
        ).astype(np.float64)
        return uses


def merge_steps(parsed: BpeTokenizer, ids: Iterable[int]) -> MergeSteps:
    """The steps of the tokens `ids`."""
    known: dict[int, tuple[int, ...]] = {}
    wanted = [(i, _steps(parsed, i, known)) for i in ids]
    counts = [len(steps) for _, steps in wanted]
    flat = itertools.chain.from_iterable(steps for _, steps in wanted)
    owners = np.repeat(np.array([i for i, _ in wanted], np.int64), counts)
    return MergeSteps(owners, np.fromiter(flat, np.int64, sum(counts)))


def _steps(
    parsed: BpeTokenizer, token_id: int, known: dict[int, tuple[int, ...]]
) -> tuple[int, ...]:
    waiting = [token_id]
    while waiting:
        at = waiting[-1]
        parts = () if at in known else parsed.last_merge(at) or ()
        if unknown := [part for part in parts if part not in known]:
            waiting += unknown
            continue
        if at not in known:
            before = itertools.chain.from_iterable(known[part] for part in parts)
            known[at] = (*before, at) if parts else _spelled(parsed, at)
        waiting.pop()
    return known[token_id]


def _spelled(parsed: BpeTokenizer, token_id: int) -> tuple[int, ...]:
    """The steps of a token that no merge makes."""
    token = parsed.tokens[token_id]
    if token_id in parsed.byte_ids or token_id in parsed.added_ids:
        return ()
    if len(token) == 1:
        # Without it, a character becomes its bytes, as it stands in the vocabulary: "▁" has three.
        return (token_id,) * (len(token.encode()) - 1)
    # A word that is looked up whole. Without it, BPE gets as far as merges go.
    made = itertools.islice(parsed.derivation(token), len(token), None)
    return (*(parsed.vocab[step] for step in made if step in parsed.vocab), token_id)
