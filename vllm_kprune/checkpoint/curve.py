"""Size against cost: what each size of a profile's vocabulary saves, and what it costs.

The cost is extra tokens, measured by encoding with the tokenizer pruned to that size. The texts are
the user's own files, or else the evidence that the profile ranks tokens by. Tokens are chosen for
just that evidence, so other text of the same kind costs a little more.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

from vllm_kprune.checkpoint.base import BaseModel, TokenizerFolder, open_original_tokenizer
from vllm_kprune.checkpoint.plan import count_evidence, evidence_sources
from vllm_kprune.checkpoint.sizes import weight_sizes
from vllm_kprune.errors import KPruneError
from vllm_kprune.profile import Corpus, Profile
from vllm_kprune.progress import Progress, ShareDone, silent
from vllm_kprune.vocabulary.corpus import read_corpus
from vllm_kprune.vocabulary.cost import encode_texts, shrink
from vllm_kprune.vocabulary.evidence import Source
from vllm_kprune.vocabulary.selection import Ranking, rank_tokens
from vllm_kprune.vocabulary.sizing import cut_ranking

__all__ = ["Curve", "CurvePoint", "measure_curve"]

# Sizes to measure, as shares of the tokens that evidence decides on. The cost falls fastest at the
# small sizes, so they are closer together.
_SHARES = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.85, 1)


@dataclass(frozen=True)
class CurvePoint:
    """A vocabulary: its size, the bytes of its weights (None without weights), and for each text
    the share of extra tokens over the original (0.02 is 2 % more)."""

    tokens: int
    vocabulary_bytes: int | None
    extra_tokens: Mapping[str, float]


@dataclass(frozen=True)
class Curve:
    """Points from the smallest vocabulary to the original; `chosen` is the profile's own size.

    `measured_on` says which texts were encoded: "evidence", or "text" for the user's own.
    """

    model: str
    profile: str
    measured_on: str
    chosen: int
    points: tuple[CurvePoint, ...]


def measure_curve(
    model: str,
    profile: Profile,
    *,
    revision: str | None = None,
    corpora: Sequence[Corpus] = (),
    texts: Sequence[Path] = (),
    progress: Progress = silent,
) -> Curve:
    """Measure a profile's curve on `texts`, or on its evidence when there are none."""
    if profile.keeps_everything:
        raise KPruneError(
            f"profile {profile.name} keeps every token, so there are no sizes to compare"
        )
    own = [_text_source(path) for path in texts]
    sources = evidence_sources(profile, corpora)
    base = open_original_tokenizer(model, revision, weights_if_any=True)
    tokenizer, rates, referenced = count_evidence(base, sources, progress)
    ranking = rank_tokens(base.tokenizer, tokenizer, profile, rates, referenced)
    chosen = len(cut_ranking(ranking, tokenizer, profile, _selecting(progress)).kept_ids)
    measured = own or [source for source in sources if source.usage is None]
    points = _points(base, ranking, tokenizer, measured, chosen, progress)
    measured_on = "text" if own else "evidence"
    return Curve(model, profile.name, measured_on, chosen, tuple(points))


def _selecting(progress: Progress) -> ShareDone:
    return lambda share: progress("select tokens", share)


def _text_source(path: Path) -> Source:
    if not path.is_file():
        raise KPruneError(f"text {path} does not exist or is not a file")
    # No digest: these texts are only measured, and no manifest names them.
    return Source(str(path), "", lambda: ((line, 1.0) for line in read_corpus(path)))


def _points(
    base: TokenizerFolder,
    ranking: Ranking,
    tokenizer: Tokenizer,
    sources: Sequence[Source],
    chosen: int,
    progress: Progress,
) -> list[CurvePoint]:
    """Measure from the largest size to the smallest: each is encoded from the one before."""
    optional = ranking.most - ranking.least
    # A set: the profile's own size may be one of the shares.
    sizes = {ranking.least + round(share * optional) for share in _SHARES} | {chosen}
    progress("measure extra tokens", 0.0)
    least_sizes = ranking.least_sizes
    original = [encode_texts(tokenizer, source, least_sizes) for source in sources]
    # The original is a point of its own: a share of 1 still lacks the tokens of foreign scripts.
    points = [_point(base, base.tokenizer.tokens, [0.0] * len(sources), sources)]
    texts = original
    for number, size in enumerate(sorted(sizes, reverse=True), start=1):
        texts = shrink(base.tokenizer, texts, size, least_sizes)
        extra = [now.extra(before) for now, before in zip(texts, original, strict=True)]
        points.append(_point(base, ranking.of_size(size).kept_ids, extra, sources))
        progress("measure extra tokens", number / len(sizes))
    return points[::-1]


def _point(
    base: TokenizerFolder,
    kept_ids: Sequence[int] | Mapping[int, str],
    extra: Sequence[float],
    sources: Sequence[Source],
) -> CurvePoint:
    kept_bytes = None
    if isinstance(base, BaseModel):
        rows = sum(i < base.rows for i in kept_ids)
        kept_bytes = int(weight_sizes(base, rows).vocabulary_bytes.last)
    named = {s.name: round(share, 6) for s, share in zip(sources, extra, strict=True)}
    return CurvePoint(len(kept_ids), kept_bytes, named)
