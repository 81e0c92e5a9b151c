"""Decide which tokens a profile keeps; nothing is changed here.

Reasons, in this order: `special`, `byte`, `script`, `evidence`, `merge` (design, section 3). What
must be kept is the first three with their BPE ancestors. Tokens of shared scripts follow in order
of evidence until the profile's size is reached, each with the ancestors that BPE needs to build it.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import regex
from tokenizers import Tokenizer

from vllm_kprune.errors import KPruneError
from vllm_kprune.profile import Profile
from vllm_kprune.tokenizer.bpe import BpeTokenizer
from vllm_kprune.tokenizer.reach import unreachable_ids
from vllm_kprune.vocabulary.evidence import TokenRates
from vllm_kprune.vocabulary.scripts import ScriptJudge
from vllm_kprune.vocabulary.strength import token_strengths

__all__ = ["REASONS", "Selection", "select_everything", "select_tokens"]

# Letter in the manifest -> reason.
REASONS: Mapping[str, str] = {
    "s": "special",
    "b": "byte",
    "c": "script",
    "e": "evidence",
    "m": "merge",
}
_RESERVED = regex.compile(
    r"[<\[]\|?(?:unused|reserved|extra_id|placeholder)[a-z_]*[ _-]?\d+\|?[>\]]"
)


@dataclass(frozen=True)
class Selection:
    """Kept ids of the original tokenizer, increasing, with one reason letter for each.

    `coverage` is, for each evidence source, the share of its tokens' occurrences that are kept,
    among those that the profile's scripts allow.
    """

    kept_ids: tuple[int, ...]
    reasons: str
    coverage: Mapping[str, float]

    def by_reason(self) -> dict[str, int]:
        """Number of kept tokens for each reason."""
        counts = Counter(self.reasons)
        return {name: counts[letter] for letter, name in REASONS.items()}


def select_everything(parsed: BpeTokenizer) -> Selection:
    """The selection of a profile without languages (`original`): every id that has a token."""
    ids = sorted(parsed.tokens)
    letters = {i: "c" for i in ids}
    letters |= dict.fromkeys(parsed.byte_ids, "b") | dict.fromkeys(parsed.added_ids, "s")
    return Selection(tuple(ids), "".join(letters[i] for i in ids), {})


def select_tokens(
    parsed: BpeTokenizer,
    tokenizer: Tokenizer,
    profile: Profile,
    rates: Sequence[TokenRates],
    referenced: frozenset[str],
) -> Selection:
    """Select tokens for a profile.

    `rates` are the evidence; `referenced` are token texts that configs or the chat template name.
    Raises `KPruneError` if `target_size` is less than what must be kept, or more than the profile's
    scripts can use.
    """
    if profile.keeps_everything:
        return select_everything(parsed)
    builder = _Builder(parsed, _required_specials(parsed, profile, referenced))
    own, shared = _judge(parsed, tokenizer, profile, builder.reasons)
    for token_id in own:
        builder.keep(token_id, "c")
    strength = token_strengths(parsed, rates, shared)
    ranked = sorted(shared, key=lambda i: (-strength[i], i))
    if profile.target_size is not None:
        _fill(builder, ranked, profile.target_size, len(parsed.tokens), profile.name)
    elif profile.coverage is not None:
        _cover(builder, ranked, [r.per_million for r in rates], profile.coverage, own)
    else:
        threshold = max(profile.min_count or 0.0, np.nextafter(0, 1))
        for token_id in ranked:
            if strength[token_id] < threshold:
                break
            builder.keep(token_id, "e")
    allowed = np.array([*builder.reasons, *shared], dtype=np.int64)
    return builder.finish(_coverage(rates, np.unique(allowed), builder.reasons))


class _Builder:
    """Kept ids so far, with reasons; keeping a token keeps its BPE ancestors."""

    def __init__(self, parsed: BpeTokenizer, specials: Sequence[int]) -> None:
        self._parsed = parsed
        self.reasons: dict[int, str] = dict.fromkeys(sorted(parsed.byte_ids), "b")
        self.reasons |= dict.fromkeys(specials, "s")
        for token_id in specials:  # texts reach some of them by merges: those that configs name
            if token_id in (ancestors := parsed.derivation_ids(token_id)):
                self.reasons |= dict.fromkeys(sorted(ancestors - self.reasons.keys()), "m")

    def missing(self, token_id: int) -> set[int]:
        """The ancestors of a token, itself included, that are not kept yet."""
        ancestors = self._parsed.derivation_ids(token_id) | {token_id}
        return {i for i in ancestors if i not in self.reasons}

    def keep(self, token_id: int, letter: str) -> None:
        if self.reasons.get(token_id, "m") == "m":
            for ancestor in self.missing(token_id):
                self.reasons[ancestor] = "m"
            self.reasons[token_id] = letter

    def finish(self, coverage: Mapping[str, float]) -> Selection:
        ids = sorted(self.reasons)
        return Selection(tuple(ids), "".join(self.reasons[i] for i in ids), coverage)


def _required_specials(
    parsed: BpeTokenizer, profile: Profile, referenced: frozenset[str]
) -> list[int]:
    """Added tokens, without reserved ones that nothing refers to where the profile drops those.

    Tokens of the vocabulary itself that a config names (an unknown token, say) are special too.
    """
    added = [
        token.id
        for token in parsed.added
        if token.content in referenced
        or not (profile.drop_unused and _RESERVED.fullmatch(token.content.lower()))
    ]
    return added + [parsed.vocab[text] for text in sorted(referenced) if text in parsed.vocab]


def _judge(
    parsed: BpeTokenizer, tokenizer: Tokenizer, profile: Profile, kept: Mapping[int, str]
) -> tuple[list[int], list[int]]:
    """Ids to keep for their script, and ids that evidence decides on; dead tokens in neither."""
    judge = ScriptJudge(profile)
    skipped = parsed.added_ids.union(kept)
    candidates = [i for i in sorted(parsed.vocab.values()) if i not in skipped]
    verdicts = {i: judge(parsed.token_bytes(i)) for i in candidates}
    living = [i for i in candidates if verdicts[i] != "foreign"]
    dead = set(unreachable_ids(parsed, tokenizer, living))
    own = [i for i in living if verdicts[i] == "script" and i not in dead]
    return own, [i for i in living if verdicts[i] == "shared" and i not in dead]


def _fill(builder: _Builder, ranked: Sequence[int], size: int, limit: int, name: str) -> None:
    least = len(builder.reasons)
    if size < least:
        raise KPruneError(
            f"target size {size}: profile {name} must keep at least {least} tokens "
            "(special, byte and script tokens with their BPE ancestors)"
        )
    if size > limit:
        raise KPruneError(f"target size {size} is above the vocabulary of {limit} tokens")
    for token_id in ranked:
        if len(builder.reasons) == size:
            return
        if len(builder.reasons) + len(builder.missing(token_id)) <= size:
            builder.keep(token_id, "e")
    if len(builder.reasons) < size:
        raise KPruneError(
            f"target size {size}: the languages of profile {name} can use at most "
            f"{len(builder.reasons)} tokens; lower it, or add a language"
        )


def _cover(
    builder: _Builder,
    ranked: Sequence[int],
    per_million: Sequence["np.ndarray[tuple[int], np.dtype[np.float64]]"],
    coverage: float,
    own: Sequence[int],
) -> None:
    """Keep ranked tokens until every source is covered."""
    everything = sorted({*builder.reasons, *own, *ranked})
    table = np.stack(per_million) if per_million else np.zeros((0, everything[-1] + 1))
    needed = coverage * table[:, everything].sum(axis=1)
    have = table[:, sorted(builder.reasons)].sum(axis=1)
    for token_id in ranked:
        if bool((have >= needed - 1e-6).all()):
            return
        for new in builder.missing(token_id):
            have += table[:, new]
        builder.keep(token_id, "e")


def _coverage(
    rates: Sequence[TokenRates],
    allowed: "np.ndarray[tuple[int], np.dtype[np.int64]]",
    kept: Iterable[int],
) -> dict[str, float]:
    ids = np.array(sorted(kept), dtype=np.int64)
    least = np.finfo(np.float64).tiny  # a source may hold nothing that the scripts allow
    return {
        r.source.name: round(
            float(r.per_million[ids].sum() / max(r.per_million[allowed].sum(), least)), 6
        )
        for r in rates
    }
