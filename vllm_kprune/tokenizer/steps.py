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
    """Pairs of a token (`owners`) and the result of a merge on the way to it (`steps`), as ids.

    The last step of a token is the token itself. A result that is needed twice occurs twice.
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
        """How often each id is needed, if tokens occur as in `rates` (both float64 [ids]).

        Not counted are characters that must be spelled in bytes, and neighbours that then merge
        differently.
        """
        uses: Floats = np.bincount(
            self.steps, weights=rates[self.owners], minlength=len(rates)
        ).astype(np.float64)
        return uses


def merge_steps(parsed: BpeTokenizer, ids: Iterable[int]) -> MergeSteps:
    """The steps of the tokens `ids`."""
    known: dict[int, tuple[int, ...]] = {}
    # Short ones first, so that the parts of a token are known before it.
    for token in sorted(parsed.vocab, key=len):
        known[parsed.vocab[token]] = _steps(parsed, token, known)
    wanted = [(i, known[i]) for i in ids if i in known]
    counts = [len(steps) for _, steps in wanted]
    flat = itertools.chain.from_iterable(steps for _, steps in wanted)
    owners = np.repeat(np.array([i for i, _ in wanted], np.int64), counts)
    return MergeSteps(owners, np.fromiter(flat, np.int64, sum(counts)))


def _steps(parsed: BpeTokenizer, token: str, known: dict[int, tuple[int, ...]]) -> tuple[int, ...]:
    parts = parsed.only_merges.get(token)
    if parts and parts[0] in known and parts[1] in known:
        # As in `BpeTokenizer.join`: a single merge makes it, so that is its last step.
        return (*known[parts[0]], *known[parts[1]], parsed.vocab[token])
    # A derivation begins with the token's characters, which are no merges.
    made = itertools.islice(parsed.derivation(token), len(token), None)
    return tuple(parsed.vocab[step] for step in made if step in parsed.vocab)
