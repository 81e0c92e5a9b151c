"""What a smaller vocabulary costs: the extra tokens that texts need with it.

Texts are encoded with the pruned tokenizer itself, so the cost is measured, not estimated.
Vocabularies of one ranking are nested, which saves time: a text whose tokens are all in the smaller
vocabulary keeps its encoding (law 1), and only the other texts are encoded again. Texts are
streamed anew each time, and only three numbers are kept for each of them.

`expected_extra` does estimate the cost, of all sizes at once, to decide which sizes to measure.
"""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from vllm_kprune.arrays import Floats
from vllm_kprune.errors import KPruneError
from vllm_kprune.tokenizer.bpe import BpeTokenizer
from vllm_kprune.tokenizer.prune import pruned_tokenizer
from vllm_kprune.vocabulary.batches import WeightedText, weighted_batches
from vllm_kprune.vocabulary.evidence import Source
from vllm_kprune.vocabulary.selection import NEVER

__all__ = ["EncodedTexts", "encode_texts", "expected_extra", "shrink"]

_Ids = npt.NDArray[np.int64]


@dataclass(frozen=True)
class EncodedTexts:
    """How one vocabulary of a ranking encodes the texts of a source.

    For each text: its weight, its number of tokens, and the size of the smallest vocabulary with
    all of these tokens.
    """

    source: Source
    weights: npt.NDArray[np.float64]
    lengths: _Ids
    least_sizes: _Ids

    def without_foreign(self) -> "EncodedTexts":
        """Texts that need a token which no size of the ranking has weigh nothing.

        Raises `KPruneError` if that is all of them.
        """
        served = self.least_sizes != NEVER
        if not (self.lengths * served).any():
            raise KPruneError(
                f"{self.source.name}: every text has letters that the profile's languages are not "
                "written in, so no size serves it; leave it out, or add a language"
            )
        return replace(self, weights=self.weights * served)

    def extra(self, original: "EncodedTexts") -> float:
        """Share of extra tokens over the original's encoding of these texts: 0.02 is 2 % more."""
        before = float(original.weights @ original.lengths)
        return float(self.weights @ self.lengths) / before - 1


def encode_texts(tokenizer: Tokenizer, source: Source, least_sizes: _Ids) -> EncodedTexts:
    """Encode a source with the original tokenizer; `least_sizes` are `Ranking.least_sizes`."""
    # A pass of its own: the number of texts gives the size of the other two arrays.
    weights = np.fromiter((weight for _, weight in source.texts()), dtype=np.float64)
    lengths, needed = _encode(tokenizer, source.texts(), len(weights), least_sizes)
    if not lengths.any():
        raise KPruneError(f"{source.name} contains no text to measure; give another file")
    return EncodedTexts(source, weights, lengths, needed)


def shrink(
    parsed: BpeTokenizer, texts: Sequence[EncodedTexts], size: int, least_sizes: _Ids
) -> list[EncodedTexts]:
    """The same texts with a vocabulary of `size` tokens, no larger than the one they have now.

    `least_sizes` are `Ranking.least_sizes`, by id of the original tokenizer `parsed`.
    """
    kept_ids = np.flatnonzero(least_sizes <= size)
    pruned = pruned_tokenizer(parsed, kept_ids.tolist())
    # The pruned tokenizer gives new ids, which are positions in kept_ids: `least_sizes` is
    # reordered to be looked up by them.
    return [_shrunk(one, pruned, size, least_sizes[kept_ids]) for one in texts]


def _shrunk(texts: EncodedTexts, pruned: Tokenizer, size: int, least_sizes: _Ids) -> EncodedTexts:
    changed = texts.least_sizes > size
    lengths, needed = texts.lengths.copy(), texts.least_sizes.copy()
    # Relies on a source that streams the same texts in the same order each time.
    again = itertools.compress(texts.source.texts(), changed)
    lengths[changed], needed[changed] = _encode(pruned, again, int(changed.sum()), least_sizes)
    return replace(texts, lengths=lengths, least_sizes=needed)


def _encode(
    tokenizer: Tokenizer, texts: Iterable[WeightedText], count: int, least_sizes: _Ids
) -> tuple[_Ids, _Ids]:
    """For each of `count` texts: its number of tokens, and the smallest size that has them all."""
    lengths, needed = np.zeros(count, np.int64), np.zeros(count, np.int64)
    start = 0
    for batch in weighted_batches(texts):
        part = slice(start, start + len(batch))
        encodings = tokenizer.encode_batch_fast([t for t, _ in batch], add_special_tokens=False)
        lengths[part] = [len(encoding) for encoding in encodings]
        ids = np.fromiter(itertools.chain.from_iterable(e.ids for e in encodings), dtype=np.int64)
        owners = np.repeat(np.arange(len(batch)), lengths[part])
        # For each text, the largest of its tokens' sizes. Plain indexing would keep only one of the
        # tokens that share an owner; the slice is a view, so `needed` itself is written.
        np.maximum.at(needed[part], owners, least_sizes[ids])
        start += len(batch)
    return lengths, needed


def expected_extra(losses: Floats, least_sizes: _Ids, sizes: _Ids) -> Floats:
    """Roughly what each of `sizes` costs each source: shares of extra tokens [sources, sizes].

    `losses` are `WeighedEvidence.losses` [sources, ids]: an id costs at every size that lacks it,
    so one cumulative sum serves all sizes.
    """
    order = np.argsort(least_sizes, kind="stable")
    # Three ids cost 5, 3 and 2 per million and need the sizes 10, 20 and 20. `gained` is 0, 5, 8,
    # 10; size 10 has the first, so it costs 10 - 5 = 5 per million.
    gained = np.cumsum(np.pad(losses[:, order], ((0, 0), (1, 0))), axis=1) / 1e6
    # side="right": a vocabulary of just the needed size has the id.
    return gained[:, [-1]] - gained[:, np.searchsorted(least_sizes[order], sizes, side="right")]
