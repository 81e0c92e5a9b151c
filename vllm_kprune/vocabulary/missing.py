"""What a vocabulary costs a text, and which dropped tokens the text misses most.

A token that is missing costs one more token for each merge of its derivation whose result is
missing too (see `cost.expected_extra`), so the dearest are found by counting, without trying.
"""

import itertools
from collections import Counter
from collections.abc import Iterable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

import numpy as np
from tokenizers import Tokenizer

from vllm_kprune.tokenizer.bpe import BpeTokenizer
from vllm_kprune.vocabulary.batches import WeightedText, weighted_batches
from vllm_kprune.vocabulary.evidence import TokenRates

__all__ = ["CostMeter", "MissingToken", "TextCost", "least_extra"]

_MOST_SHOWN = 10


@dataclass(frozen=True)
class MissingToken:
    """A dropped token: its text, how often it occurs, and about how many tokens that adds."""

    text: str
    occurrences: int
    extra_tokens: int


@dataclass(frozen=True)
class TextCost:
    """Tokens of a text before and after pruning, and the dropped ones that it misses most."""

    original: int
    pruned: int
    dearest: tuple[MissingToken, ...]

    @property
    def extra(self) -> float:
        """Share of extra tokens: 0.02 is 2 % more."""
        return self.pruned / self.original - 1 if self.original else 0.0


class CostMeter:
    """Encodes texts with a tokenizer and with its pruned form."""

    def __init__(
        self,
        parsed: BpeTokenizer,
        original: Tokenizer,
        pruned: Tokenizer,
        kept_ids: Sequence[int],
    ) -> None:
        self._parsed, self._original, self._pruned = parsed, original, pruned
        self._kept = frozenset(kept_ids)

    def measure(self, texts: Iterable[WeightedText]) -> TextCost:
        """The cost of texts together; each counts once, whatever its weight."""
        before = after = 0
        missing: Counter[int] = Counter()
        for batch in weighted_batches(texts):
            plain = [text for text, _ in batch]
            encoded = self._original.encode_batch_fast(plain, add_special_tokens=False)
            again = self._pruned.encode_batch_fast(plain, add_special_tokens=False)
            before += sum(map(len, encoded))
            after += sum(map(len, again))
            ids = itertools.chain.from_iterable(one.ids for one in encoded)
            missing.update(i for i in ids if i not in self._kept)
        return TextCost(before, after, self._dearest(missing))

    def _dearest(self, missing: Counter[int]) -> tuple[MissingToken, ...]:
        added = {i: n * _lost_steps(self._parsed, i, self._kept) for i, n in missing.items()}
        # Ids decide between equals, so that the same text always shows the same list.
        dearest = sorted(missing, key=lambda i: (-added[i], i))[:_MOST_SHOWN]
        return tuple(MissingToken(self._text(i), missing[i], added[i]) for i in dearest if added[i])

    def _text(self, token_id: int) -> str:
        return self._parsed.token_bytes(token_id).decode(errors="replace")


def least_extra(parsed: BpeTokenizer, rates: TokenRates, kept_ids: Sequence[int]) -> float:
    """About the share of extra tokens that a source needs with the kept ids, without encoding it.

    Characters that must be spelled in bytes are not counted, so it can only be too low.
    """
    kept = frozenset(kept_ids)
    used = np.flatnonzero(rates.per_million).tolist()
    lost = [(i, _lost_steps(parsed, i, kept)) for i in used if i not in kept]
    return sum(float(rates.per_million[i]) * steps for i, steps in lost) / 1e6


def _lost_steps(parsed: BpeTokenizer, token_id: int, kept: AbstractSet[int]) -> int:
    """Merges in a token's derivation whose result is not kept.

    If "the" and "th" are missing, "the" becomes t, h, e, two tokens more.
    """
    token = parsed.tokens[token_id]
    made = parsed.derivation(token) if token in parsed.vocab else ()
    # A derivation begins with the token's characters, which are no merges.
    steps = itertools.islice(made, len(token), None)
    return sum(parsed.vocab.get(step) not in kept for step in steps)
