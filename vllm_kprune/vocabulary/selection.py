"""Rank the tokens that a profile may keep, and cut the ranking at a size.

A token is kept for one of six reasons, in this order: `special`, `byte`, `keep`, `script`,
`evidence`, `merge`. The first four must be kept, with the ancestors that BPE needs to build them
(`merge`).
Tokens of shared scripts follow in order of evidence, each after its ancestors. Where to cut is
decided in `sizing.py`; nothing is written here.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import regex
from tokenizers import Tokenizer

from vllm_kprune.profile import Profile
from vllm_kprune.tokenizer.bpe import BpeTokenizer
from vllm_kprune.tokenizer.reach import unreachable_ids
from vllm_kprune.vocabulary.evidence import TokenRates
from vllm_kprune.vocabulary.scripts import ScriptJudge
from vllm_kprune.vocabulary.strength import WeighedEvidence, in_order, weigh_evidence

__all__ = ["NEVER", "REASONS", "Ranking", "Selection", "rank_tokens", "select_everything"]

# Letter in the manifest -> reason.
REASONS: Mapping[str, str] = {
    "s": "special",
    "b": "byte",
    "c": "script",
    "e": "evidence",
    "m": "merge",
    "k": "keep",
}
# <unused42>, <|reserved_special_token_7|>, [extra_id_0]; matched in lower case.
_RESERVED = regex.compile(
    r"[<\[]\|?(?:unused|reserved|extra_id|placeholder)[a-z_]*[ _-]?\d+\|?[>\]]"
)


@dataclass(frozen=True)
class Selection:
    """Kept ids of the original tokenizer, increasing, with one reason letter for each.

    `coverage`: for each source of evidence, 1 less the share of extra tokens that is expected
    (`MergeSteps.uses`), among the tokens that the profile's scripts allow; at least 0.
    """

    kept_ids: tuple[int, ...]
    reasons: str
    coverage: Mapping[str, float]

    def by_reason(self) -> dict[str, int]:
        """Number of kept tokens for each reason."""
        counts = Counter(self.reasons)
        return {name: counts[letter] for letter, name in REASONS.items()}


def select_everything(parsed: BpeTokenizer) -> Selection:
    """The selection of a profile without languages (`original`): every id that has a token.

    All reasons but special and byte read as `script`.
    """
    ids = sorted(parsed.tokens)
    letters = {i: "c" for i in ids}
    letters |= dict.fromkeys(parsed.byte_ids, "b") | dict.fromkeys(parsed.added_ids, "s")
    return Selection(tuple(ids), "".join(letters[i] for i in ids), {})


# Larger than any vocabulary: the least size with a token that no vocabulary has.
NEVER = np.iinfo(np.int64).max


@dataclass(frozen=True)
class Ranking:
    """Every token that a profile can keep of a tokenizer, in the order in which it is added.

    `required` are the ids that must be kept, with a reason letter for each. `ranked` are the ids
    that `evidence` decides on, strongest first. `joining` are the ids
    that these add, ancestors before what is built from them. So `required` with any beginning of
    `joining` is a vocabulary that can build all its tokens, and vocabularies are nested. `sizes[n]`
    is the size of the vocabulary with the first n of `ranked`.

    Say "the" is the strongest of `ranked`, its ancestor "th" is not there yet, and 500 tokens are
    required: `joining` begins with "th", "the", and `sizes` with 500, 502.
    """

    parsed: BpeTokenizer
    rates: tuple[TokenRates, ...]
    evidence: WeighedEvidence
    required: Mapping[int, str]
    ranked: tuple[int, ...]
    joining: tuple[int, ...]
    sizes: npt.NDArray[np.int64]

    @property
    def least(self) -> int:
        """Size of the smallest vocabulary: what must be kept."""
        return len(self.required)

    @property
    def most(self) -> int:
        """Size of the largest vocabulary that the profile's languages can use."""
        return len(self.required) + len(self.joining)

    @cached_property
    def least_sizes(self) -> npt.NDArray[np.int64]:
        """For each id, the size of the smallest vocabulary with it; `NEVER` if there is none."""
        found = np.full(max(self.parsed.tokens) + 1, NEVER)
        found[list(self.required)] = self.least
        # The first that joins makes the vocabulary one larger than `least`, hence the + 1.
        found[list(self.joining)] = np.arange(self.least + 1, self.most + 1)
        return found

    def first(self, count: int) -> "Selection":
        """What is kept with the first `count` of `ranked`."""
        return self._cut(count, int(self.sizes[count]))

    def of_size(self, size: int) -> "Selection":
        """The vocabulary of exactly `size` tokens, from `least` to `most`.

        A size between two of `sizes` ends among the ancestors of a ranked token, without the token.
        """
        # Sizes repeat where a ranked token joined before as an ancestor of a stronger one.
        count = int(np.searchsorted(self.sizes, size))
        return self._cut(count if self.sizes[count] == size else count - 1, size)

    def _cut(self, count: int, size: int) -> "Selection":
        """The vocabulary of `size` tokens; the first `count` of `ranked` are kept on evidence."""
        reasons = dict(self.required) | dict.fromkeys(self.joining[: size - self.least], "m")
        # Later letters win: an ancestor that is ranked high enough itself is kept on evidence.
        reasons |= dict.fromkeys(self.ranked[:count], "e")
        ids = sorted(reasons)
        letters = "".join(reasons[i] for i in ids)
        return Selection(tuple(ids), letters, self._coverage(ids))

    def _coverage(self, kept_ids: Sequence[int]) -> dict[str, float]:
        lost = self.evidence.losses.copy()
        lost[:, list(kept_ids)] = 0.0
        # A source may have no token that the scripts allow. Tokens of foreign scripts are not
        # counted, so what they cover is not held against a size.
        tokens = np.maximum(self.evidence.tokens, np.finfo(np.float64).tiny)
        shares = np.where(self.evidence.tokens > 0, 1 - lost.sum(axis=1) / tokens, 0.0)
        pairs = zip(self.rates, np.maximum(shares, 0.0).tolist(), strict=True)
        return {rate.source.name: round(share, 6) for rate, share in pairs}


def rank_tokens(
    parsed: BpeTokenizer,
    tokenizer: Tokenizer,
    profile: Profile,
    rates: Sequence[TokenRates],
    referenced: frozenset[str],
) -> Ranking:
    """Rank the tokens of a tokenizer for a profile that names languages.

    `rates` are the evidence; `referenced` are texts of tokens that configs or the chat template
    name.
    """
    required = _always_kept(parsed, _required_specials(parsed, profile, referenced))
    for token_id in _named(tokenizer, profile):
        required |= dict.fromkeys(parsed.derivation_ids(token_id) - required.keys(), "m")
        if required.get(token_id) == "m":
            required[token_id] = "k"
    own, shared = _judge(parsed, tokenizer, profile, required)
    joined = dict.fromkeys(required)
    # As a byte, a character of ASCII takes no token more, but a model has hardly seen <0x63> for c.
    ascii_ids = [parsed.vocab[one] for one in map(chr, range(128)) if one in parsed.vocab]
    for token_id in (*own, *ascii_ids):
        parsed.join(joined, token_id)
    # Later letters win; what has none but "m" is there as an ancestor only. The keys and their
    # order stay those of `joined`, so `joining` below is what comes after them.
    required = dict.fromkeys(joined, "m") | required | dict.fromkeys(own, "c")
    evidence = weigh_evidence(parsed, rates, shared, joined)
    ranked = in_order(np.array(shared, dtype=np.int64), evidence.strengths).tolist()
    sizes = [len(joined)]
    for token_id in ranked:
        parsed.join(joined, token_id)
        sizes.append(len(joined))
    return Ranking(
        parsed=parsed,
        rates=tuple(rates),
        required=required,
        evidence=evidence,
        ranked=tuple(ranked),
        joining=tuple(joined)[len(required) :],
        sizes=np.array(sizes, dtype=np.int64),
    )


def _always_kept(parsed: BpeTokenizer, specials: Sequence[int]) -> dict[int, str]:
    """Byte and special tokens, and the ancestors of those specials that merges reach."""
    kept = dict.fromkeys(sorted(parsed.byte_ids), "b") | dict.fromkeys(specials, "s")
    # Most special tokens are matched in the text before BPE runs. Some that configs name are
    # ordinary tokens of the vocabulary, which BPE must still be able to build.
    for token_id in specials:
        if token_id in (ancestors := parsed.derivation_ids(token_id)):
            kept |= dict.fromkeys(ancestors - kept.keys(), "m")
    return kept


def _required_specials(
    parsed: BpeTokenizer, profile: Profile, referenced: frozenset[str]
) -> list[int]:
    """Added tokens, except reserved ones that nothing refers to, if the profile drops these.

    Tokens of the vocabulary itself are special too if a config names them: an unknown token, say.
    """
    added = [
        token.id
        for token in parsed.added
        if token.content in referenced
        or not (profile.drop_unused and _RESERVED.fullmatch(token.content.lower()))
    ]
    return added + [parsed.vocab[text] for text in sorted(referenced) if text in parsed.vocab]


def _named(tokenizer: Tokenizer, profile: Profile) -> list[int]:
    """Ids of the tokens that the texts of the profile's `keep` consist of."""
    encodings = tokenizer.encode_batch_fast(list(profile.keep), add_special_tokens=False)
    return [token_id for encoding in encodings for token_id in encoding.ids]


def _judge(
    parsed: BpeTokenizer, tokenizer: Tokenizer, profile: Profile, kept: Mapping[int, str]
) -> tuple[list[int], list[int]]:
    """Ids kept for their script, and ids that evidence decides on. Dead tokens are in neither."""
    judge = ScriptJudge(profile)
    skipped = parsed.added_ids.union(kept)
    candidates = [i for i in sorted(parsed.vocab.values()) if i not in skipped]
    verdicts = {i: judge(parsed.token_bytes(i)) for i in candidates}
    living = [i for i in candidates if verdicts[i] != "foreign"]
    # Tokens that the original never produces either would be rows for nothing (law 3).
    dead = set(unreachable_ids(parsed, tokenizer, living))
    own = [i for i in living if verdicts[i] == "script" and i not in dead]
    return own, [i for i in living if verdicts[i] == "shared" and i not in dead]
