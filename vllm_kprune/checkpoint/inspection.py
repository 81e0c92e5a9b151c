"""Describe a model's vocabulary, and what a profile makes of it, in numbers.

Parameters and bytes count a tied head once. Tokens per character are what a language pays: they are
measured on word lists in the forms of running text, weighted by frequency, or on the user's files.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path

from tokenizers import Tokenizer

from vllm_kprune.checkpoint.base import BaseModel, TokenizerFolder, open_original_tokenizer
from vllm_kprune.checkpoint.families import Family
from vllm_kprune.checkpoint.manifest import is_overlay, load_manifest
from vllm_kprune.checkpoint.origin import open_described
from vllm_kprune.checkpoint.plan import choose_tokens, evidence_sources
from vllm_kprune.checkpoint.sizes import Change, WeightSizes, weight_sizes
from vllm_kprune.profile import LANGUAGES, Corpus, Profile
from vllm_kprune.progress import Progress, silent
from vllm_kprune.tokenizer.encoder import load_encoder
from vllm_kprune.tokenizer.prune import pruned_tokenizer
from vllm_kprune.vocabulary.batches import WeightedText, weighted_batches
from vllm_kprune.vocabulary.corpus import read_corpus
from vllm_kprune.vocabulary.missing import CostMeter, TextCost
from vllm_kprune.vocabulary.samples import genre_samples
from vllm_kprune.vocabulary.scripts import main_script
from vllm_kprune.vocabulary.selection import REASONS, Selection
from vllm_kprune.vocabulary.wordlists import word_forms

__all__ = ["FamilyEvidence", "Inspection", "KeptToken", "inspect_model"]

# Texts, not words: each is a group of neighbouring words in one form. Frequent ones come first, so
# what is left out weighs little.
_WORD_GROUPS = 10_000


@dataclass(frozen=True, slots=True)
class KeptToken:
    """A kept token: ids before and after, why it is kept, and its spelling in the vocabulary."""

    original_id: int
    id: int
    reason: str
    script: str
    token: str


@dataclass(frozen=True)
class FamilyEvidence:
    """A model's class, published models of it, and what tests show or do not show, in words."""

    architecture: str
    models: str
    shown: tuple[str, ...]
    assumed: tuple[str, ...]

    @classmethod
    def of(cls, family: Family) -> "FamilyEvidence":
        """What the table of families says."""
        return cls(family.architecture, family.models, family.shown, family.assumed)


@dataclass(frozen=True)
class Inspection:
    """What `kprune inspect` shows: `tokens`, `by_script` and `by_reason` count tokens.

    Parameters and bytes are those of `WeightSizes`, or None for a tokenizer without a model.
    `tokens_per_character` has an entry for each language and each of the user's texts. `genres` and
    `texts` tell what the pruned vocabulary costs the samples of each genre, and the user's texts;
    they are empty where nothing is pruned. `family` tells what was tested of the model's class; it
    is None for a tokenizer without a model.
    """

    model: str
    profile: str | None
    family: FamilyEvidence | None
    tokens: Change
    parameters: Change | None
    bytes: Change | None
    vocabulary_bytes: Change | None
    head_bytes: Change | None
    step_bytes: Change | None
    by_script: Mapping[str, Change]
    by_reason: Mapping[str, int]
    tokens_per_character: Mapping[str, Change]
    genres: Mapping[str, TextCost]
    texts: Mapping[str, TextCost]
    kept: tuple[KeptToken, ...] = field(default=(), repr=False)


def inspect_model(
    model: str,
    profile: Profile | None = None,
    *,
    revision: str | None = None,
    corpora: Sequence[Corpus] = (),
    texts: Sequence[Path] = (),
    languages: Sequence[str] = (),
    progress: Progress = silent,
) -> Inspection:
    """Inspect a base model, a base model under a profile, or an overlay.

    Each of `texts` is measured separately. `languages` are measured besides the profile's own.
    """
    base, selection, profile = _open(model, profile, revision, corpora, progress)
    progress("measure tokens per character", 0.0)
    kept = set(selection.kept_ids) if selection else None
    codes = [*(profile.languages if profile else ()), *languages] or ["en"]
    pair = _tokenizers(base, selection)
    measured: dict[str, Change] = {}
    for code in dict.fromkeys(codes):
        if wordlist := LANGUAGES[code].wordlist:
            measured[code] = _tokens_per_character(pair, word_forms(wordlist))
    for path in texts:
        measured[str(path)] = _tokens_per_character(pair, _lines(path), most=None)
    progress("measure tokens per character", 1.0)
    genres, costs = _costs(base, selection, profile, pair, texts)
    return Inspection(
        model=model,
        profile=profile.name if profile else None,
        family=FamilyEvidence.of(base.family) if isinstance(base, BaseModel) else None,
        tokens=Change(len(base.tokenizer.tokens), len(kept) if kept is not None else None),
        by_script=_by_script(base, kept),
        by_reason=selection.by_reason() if selection else {},
        tokens_per_character=measured,
        genres=genres,
        texts=costs,
        kept=tuple(_kept_tokens(base, selection)) if selection else (),
        **_sizes(base, kept),
    )


def _open(
    model: str,
    profile: Profile | None,
    revision: str | None,
    corpora: Sequence[Corpus],
    progress: Progress,
) -> tuple[TokenizerFolder, Selection | None, Profile | None]:
    # First: a corpus that cannot be read is refused before a model is downloaded.
    sources = evidence_sources(profile, corpora) if profile else []
    if profile is None and is_overlay(model):
        manifest = load_manifest(Path(model))
        manifest.check_files(Path(model))
        chosen = Selection(manifest.kept_ids, manifest.reasons, {})  # coverage is not recorded
        return open_described(manifest), chosen, manifest.profile
    base = open_original_tokenizer(model, revision, weights_if_any=True)
    if profile is None:
        return base, None, None
    return base, choose_tokens(base, profile, sources, progress)[0], profile


def _sizes(base: TokenizerFolder, kept: set[int] | None) -> dict[str, Change | None]:
    if not isinstance(base, BaseModel):
        return dict.fromkeys(one.name for one in fields(WeightSizes))
    rows = None if kept is None else sum(i < base.rows for i in kept)
    return vars(weight_sizes(base, rows))


def _kept_tokens(base: TokenizerFolder, selection: Selection) -> Iterator[KeptToken]:
    pairs = zip(selection.kept_ids, selection.reasons, strict=True)
    for new, (old, letter) in enumerate(pairs):
        token = base.tokenizer.tokens[old]
        yield KeptToken(old, new, REASONS[letter], _script(base, old), token)


def _script(base: TokenizerFolder, token_id: int) -> str:
    if token_id in base.tokenizer.added_ids:
        return "Special"
    return main_script(base.tokenizer.token_bytes(token_id))


def _by_script(base: TokenizerFolder, kept: set[int] | None) -> dict[str, Change]:
    scripts = {i: _script(base, i) for i in base.tokenizer.tokens}
    before = Counter(scripts.values())
    if kept is None:
        return {script: Change(count) for script, count in before.most_common()}
    after = Counter(scripts[i] for i in kept)
    return {script: Change(count, after[script]) for script, count in before.most_common()}


def _lines(path: Path) -> Iterator[WeightedText]:
    return ((line, 1.0) for line in read_corpus(path))


def _costs(
    base: TokenizerFolder,
    selection: Selection | None,
    profile: Profile | None,
    pair: Sequence[Tokenizer],
    texts: Sequence[Path],
) -> tuple[dict[str, TextCost], dict[str, TextCost]]:
    """What the pruned vocabulary costs the samples of each genre, and each of the user's texts."""
    if selection is None or profile is None:
        return {}, {}
    meter = CostMeter(base.tokenizer, pair[0], pair[1], selection.kept_ids)
    samples = genre_samples(profile) if not profile.keeps_everything else ()
    genres = {name: meter.measure([(text, 1.0)]) for name, text in samples}
    return genres, {str(path): meter.measure(_lines(path)) for path in texts}


def _tokenizers(base: TokenizerFolder, selection: Selection | None) -> list[Tokenizer]:
    original = load_encoder(base.folder)
    if selection is None:
        return [original]
    return [original, pruned_tokenizer(base.tokenizer, selection.kept_ids)]


def _tokens_per_character(
    tokenizers: Sequence[Tokenizer],
    texts: Iterable[WeightedText],
    most: int | None = _WORD_GROUPS,
) -> Change:
    """Weighted tokens divided by weighted characters."""
    characters, counts = 0.0, [0.0] * len(tokenizers)
    for batch in weighted_batches(texts, most):
        weights = [weight for _, weight in batch]
        characters += sum(len(t) * w for (t, _), w in zip(batch, weights, strict=True))
        for number, tokenizer in enumerate(tokenizers):
            # Without specials: a BOS for each short text would raise its tokens per character.
            encoded = tokenizer.encode_batch_fast([t for t, _ in batch], add_special_tokens=False)
            counts[number] += sum(len(e) * w for e, w in zip(encoded, weights, strict=True))
    if not characters:
        return Change(0.0, 0.0 if len(tokenizers) > 1 else None)
    per_character = [count / characters for count in counts]
    return Change(per_character[0], per_character[1] if len(tokenizers) > 1 else None)
