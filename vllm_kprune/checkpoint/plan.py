"""Plan what is kept: check a model, count the evidence and select tokens. Nothing is written.

A plan holds all that writing needs (`checkpoint/overlay.py`, `checkpoint/export.py`), so every
reason to stop is found before the first byte is written.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from vllm_kprune.checkpoint.base import (
    BaseModel,
    TokenizerFolder,
    open_original,
    open_original_tokenizer,
)
from vllm_kprune.checkpoint.model_folder import CONFIG_FILES
from vllm_kprune.checkpoint.token_ids import map_ids, token_texts
from vllm_kprune.errors import KPruneError, shown
from vllm_kprune.profile import Corpus, Profile
from vllm_kprune.progress import Progress, silent
from vllm_kprune.storage.bounded import TEMPLATE_BYTES, read_bytes
from vllm_kprune.tokenizer.checks import check_numbering
from vllm_kprune.tokenizer.encoder import load_encoder
from vllm_kprune.tokenizer.prune import referenced_ids
from vllm_kprune.vocabulary.evidence import (
    Source,
    TokenRates,
    check_usage,
    count_source,
    profile_sources,
)
from vllm_kprune.vocabulary.missing import least_extra
from vllm_kprune.vocabulary.selection import Selection
from vllm_kprune.vocabulary.sizing import select_tokens

__all__ = [
    "Plan",
    "TokenizerPlan",
    "choose_tokens",
    "count_evidence",
    "evidence_sources",
    "make_plan",
    "make_tokenizer_plan",
    "without_added_tokens",
]


@dataclass(frozen=True)
class TokenizerPlan:
    """Which tokens of which tokenizer are kept, and the evidence for it."""

    base: TokenizerFolder
    profile: Profile
    selection: Selection
    rates: tuple[TokenRates, ...]

    def own_costs(self) -> dict[str, float]:
        """For each of the user's corpora and usage files, the share of extra tokens it will need.

        Estimated from what was counted, so rather too low (see `least_extra`).
        """
        own = [one for one in self.rates if one.source.own]
        kept = self.selection.kept_ids
        return {
            one.source.name: round(least_extra(self.base.tokenizer, one, kept), 6) for one in own
        }


@dataclass(frozen=True)
class Plan(TokenizerPlan):
    """A plan for a model with weights."""

    base: BaseModel


def make_plan(
    model: str | Path,
    profile: Profile,
    *,
    revision: str | None = None,
    corpora: Sequence[Corpus] = (),
    progress: Progress = silent,
) -> Plan:
    """Plan for a model, a folder or a hub id; for an overlay, that is its base."""
    sources = evidence_sources(profile, corpora)
    progress("read model", 0.0)
    base = open_original(model, revision)
    return Plan(base, profile, *choose_tokens(base, profile, sources, progress))


def make_tokenizer_plan(
    model: str | Path,
    profile: Profile,
    *,
    revision: str | None = None,
    corpora: Sequence[Corpus] = (),
    progress: Progress = silent,
) -> TokenizerPlan:
    """Plan for a tokenizer alone: weights in the same folder are not looked at."""
    sources = evidence_sources(profile, corpora)
    progress("read tokenizer", 0.0)
    base = open_original_tokenizer(model, revision)
    return TokenizerPlan(base, profile, *choose_tokens(base, profile, sources, progress))


def evidence_sources(profile: Profile, corpora: Sequence[Corpus]) -> list[Source]:
    """The sources for a profile and the user's corpora; none if every token is kept."""
    if not profile.keeps_everything:
        return profile_sources(profile, corpora)
    if corpora:
        raise KPruneError(
            f"profile {profile.name} keeps every token, so neither a corpus nor a usage file "
            "changes anything; leave it out"
        )
    return []


def choose_tokens(
    base: TokenizerFolder, profile: Profile, sources: Sequence[Source], progress: Progress
) -> tuple[Selection, tuple[TokenRates, ...]]:
    """What a profile keeps of a tokenizer, and the evidence for it."""
    encoder, rates, referenced = count_evidence(base, sources, progress)
    selection = select_tokens(
        base.tokenizer,
        encoder,
        profile,
        rates,
        referenced,
        lambda share: progress("select tokens", share),
    )
    progress("select tokens", 1.0)
    return selection, rates


def count_evidence(
    base: TokenizerFolder, sources: Sequence[Source], progress: Progress
) -> tuple[Tokenizer, tuple[TokenRates, ...], frozenset[str]]:
    """What tokens are ranked by: the encoder, rates in each source, and referenced token texts."""
    check_usage(sources, base.folder)
    encoder = load_encoder(base.folder)
    check_numbering(base.tokenizer.added, encoder, str(base.folder / "tokenizer.json"))
    referenced = frozenset(_referenced_texts(base))
    size = max(base.tokenizer.tokens) + 1
    rates = []
    for number, source in enumerate(sources):
        progress(f"count {source.name}", number / len(sources))
        # One after the other: the library encodes on all cores, and two at once took a third more.
        rates.append(count_source(encoder, source, size))
    progress("select tokens", 0.0)
    return encoder, tuple(rates), referenced


def _referenced_texts(base: TokenizerFolder) -> set[str]:
    """Texts of all tokens that the model's configs, tokenizer or chat template refer to."""
    tokenizer = base.tokenizer
    ids: set[int] = set()

    def note(token_id: int, where: str) -> int:
        # Such a config is broken before pruning. To drop the id would hide that; to map it is a
        # guess.
        if token_id not in tokenizer.tokens:
            raise KPruneError(
                f"{where} names token id {shown(token_id)}, which the tokenizer lacks"
            )
        ids.add(token_id)
        return token_id

    texts: set[str] = set()
    for name in CONFIG_FILES:
        path = base.folder / name
        if name == "tokenizer.json" or not path.is_file():
            continue
        if path.suffix == ".jinja":
            # A template is a program, so what it can print is not known. An added token whose text
            # stands in it counts as referenced.
            templates = read_bytes(path, TEMPLATE_BYTES).decode(errors="replace")
        else:
            value = without_added_tokens(base.read_config(name))
            map_ids(value, note, name)
            # Some configs name a token by its text, not by its id; so both end up as texts.
            texts |= set(token_texts(value))
            templates = str(value.get("chat_template") or "")
        texts |= {token.content for token in tokenizer.added if token.content in templates}
    for token_id in referenced_ids(tokenizer):
        note(token_id, "tokenizer.json")
    return texts | {tokenizer.tokens[i] for i in ids}


def without_added_tokens(config: dict[str, Any]) -> dict[str, Any]:
    """A tokenizer_config.json without its list of added tokens.

    The list names every added token. If it counted as a reference, none could be dropped.
    """
    return {key: item for key, item in config.items() if key != "added_tokens_decoder"}
