"""Check the laws of a pruned vocabulary, on an overlay and the user's own text.

1. Covered text is unchanged: it is encoded to the same tokens.
2. Nothing is lost in encoding and decoding.
3. There are no dead rows: every kept token can be produced.
4. The model is the same. Checked here is what needs no running model: the weights of a standalone
   checkpoint are those of its base, bit for bit. Live tests of kprune itself show the rest. The
   matrices that `kprune sparsify` changed are left out, and the result says so.
5. Building again gives the same files, and pruning a pruned model changes nothing.
6. Every id in every file is mapped.
"""

import itertools
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tokenizers import Encoding, Tokenizer

from vllm_kprune.checkpoint.base import TokenizerFolder
from vllm_kprune.checkpoint.export import weights_of_overlay
from vllm_kprune.checkpoint.manifest import (
    EXPORT_NAME,
    MANIFEST_NAME,
    SPARSITY_NAME,
    Manifest,
    is_export,
    is_overlay,
    load_manifest,
)
from vllm_kprune.checkpoint.model_folder import CONFIG_FILES
from vllm_kprune.checkpoint.origin import open_described
from vllm_kprune.checkpoint.overlay import write_overlay
from vllm_kprune.checkpoint.plan import TokenizerPlan, make_plan, make_tokenizer_plan
from vllm_kprune.checkpoint.token_ids import map_ids
from vllm_kprune.checkpoint.verify_weights import compare_index, compare_weights
from vllm_kprune.errors import KPruneError
from vllm_kprune.profile import LANGUAGES, Corpus, as_corpora
from vllm_kprune.progress import Progress, silent
from vllm_kprune.storage.bounded import MODEL_FILE, NOTES, read_object
from vllm_kprune.tokenizer.bpe import read_tokenizer
from vllm_kprune.tokenizer.encoder import load_encoder
from vllm_kprune.tokenizer.prune import prune_tokenizer
from vllm_kprune.tokenizer.reach import unreachable_ids
from vllm_kprune.vocabulary.selection import Selection
from vllm_kprune.vocabulary.wordlists import word_forms

__all__ = ["LawResult", "verify_overlay"]

_BATCH_TEXTS = 2000
_DEFAULT_TEXTS = 5_000


@dataclass(frozen=True)
class LawResult:
    """The result for one law: the number of cases, and the first counter-example if any."""

    law: int
    title: str
    checked: int
    counter_example: str | None = None
    note: str = ""

    @property
    def holds(self) -> bool:
        """True if no counter-example was found."""
        return self.counter_example is None


def verify_overlay(
    folder: str | Path,
    texts: Iterable[str] | None = None,
    *,
    corpora: Sequence[str | Path] = (),
    usage: Sequence[str | Path] = (),
    base: str | Path | None = None,
    progress: Progress = silent,
) -> list[LawResult]:
    """Check the laws on a folder that `build_overlay` or `export_overlay` wrote.

    This is what `kprune verify` does: laws 1, 2, 3, 5 and 6, and law 4 for a standalone checkpoint.

    `texts` are texts of your own, for instance the lines of a file; without them, the word lists of
    the profile's languages are used. `corpora` and `usage` are those that the overlay was built
    with, `base` is the folder of the base model if it was moved.

    Raises `KPruneError` if the overlay or its base has changed since the build; every file of both
    is read. A law that does not hold is no error: look at `holds`.

    >>> laws = verify_overlay(overlay, ["a text of your own"])
    >>> [law.law for law in laws if law.holds]
    [1, 2, 3, 5, 6]
    """
    folder, own = Path(folder), as_corpora(corpora, usage)
    # What is served goes by kprune.json, so an overlay with both is no export.
    exported = is_export(folder) and not is_overlay(folder)
    name = EXPORT_NAME if exported else MANIFEST_NAME
    manifest = load_manifest(folder, name)
    manifest.check_files(folder, name)
    described = open_described(
        manifest, Path(base) if base else None, whole=True, progress=progress
    )
    base_folder = described.folder
    pair = _BothTokenizers(load_encoder(base_folder), load_encoder(folder), manifest)
    progress("encode and decode text", 0.0)
    results = list(pair.laws_1_and_2(texts if texts is not None else _default_texts(manifest)))
    progress("look for dead rows", 0.0)
    results.append(_law_3(manifest, folder, base_folder, pair))
    if exported:
        results.append(_law_4(manifest, folder, base_folder, progress))
    progress("build again", 0.0)
    results.append(_law_5(manifest, folder, base_folder, own))
    progress("compare ids", 0.0)
    results.append(_law_6(folder, described, pair))
    progress("compare ids", 1.0)
    return results


class _BothTokenizers:
    """The original and the pruned tokenizer, and the map between their ids."""

    def __init__(self, original: Tokenizer, pruned: Tokenizer, manifest: Manifest) -> None:
        self.original, self.pruned = original, pruned
        self.new_ids = {old: new for new, old in enumerate(manifest.kept_ids)}

    def laws_1_and_2(self, texts: Iterable[str]) -> Iterator[LawResult]:
        """Encode and decode every text with both tokenizers, in batches."""
        seen = covered = 0
        first: dict[int, str] = {}
        iterator = iter(texts)
        while batch := list(itertools.islice(iterator, _BATCH_TEXTS)):
            before = self.original.encode_batch(batch)
            after = self.pruned.encode_batch(batch)
            lost = self._decode_all(batch, before, after)
            if lost and 2 not in first:
                first[2] = lost
            seen += len(batch)
            for text, old, new in zip(batch, before, after, strict=True):
                # The original's ids in new numbers; None where a token was pruned. Law 1 promises
                # nothing for such a text, so only law 2 looks at it.
                image = [self.new_ids.get(i) for i in old.ids]
                # With the kept ids 0, 5 and 9, the original's 5 9 must be the pruned tokenizer's 1
                # 2, but 5 7 is a text that law 1 says nothing about.
                covered += None not in image
                if 1 not in first and None not in image and image != new.ids:
                    first[1] = _explain(text, old, new, image)
        note = f"of {seen:,} texts; the others need a token that was pruned"
        yield LawResult(1, "covered text is unchanged", covered, first.get(1), note)
        yield LawResult(2, "encoding and decoding lose nothing", seen, first.get(2))

    def _decode_all(
        self, batch: list[str], before: list[Encoding], after: list[Encoding]
    ) -> str | None:
        old = self.original.decode_batch([e.ids for e in before], skip_special_tokens=False)
        new = self.pruned.decode_batch([e.ids for e in after], skip_special_tokens=False)
        for text, a, b in zip(batch, old, new, strict=True):
            if a != b:
                return f"text {text!r}: the original decodes to {a!r}, the pruned one to {b!r}"
        return None


def _explain(text: str, old: Encoding, new: Encoding, image: list[int | None]) -> str:
    pairs = itertools.zip_longest(image, new.ids)
    at = next(n for n, (a, b) in enumerate(pairs) if a != b)
    return (
        f"text {text!r}: from token {at} on, the original has {old.tokens[at : at + 5]}, "
        f"the pruned one {new.tokens[at : at + 5]}"
    )


def _default_texts(manifest: Manifest) -> Iterator[str]:
    """Words of the profile's languages (English if it has none) in the forms of running text."""
    for code in manifest.profile.languages or ("en",):
        wordlist = LANGUAGES[code].wordlist
        if wordlist:
            yield from (text for text, _ in itertools.islice(word_forms(wordlist), _DEFAULT_TEXTS))


def _law_3(manifest: Manifest, folder: Path, base_folder: Path, pair: _BothTokenizers) -> LawResult:
    """A token may be unreachable if it is in the original too, and other tokens are built from it.

    Qwen3 has a few: the first bytes of a block of emoji, each of which is a token of its own.
    """
    title = "no dead rows"
    if manifest.profile.keeps_everything:
        return LawResult(3, title, 0, note="does not apply: the profile prunes nothing")
    parsed = read_tokenizer(folder)
    # Specials are matched before BPE runs, and bytes spell what no other token does: neither needs
    # a merge to reach it.
    ids = [new for new, letter in enumerate(manifest.reasons) if letter not in "sb"]
    dead = unreachable_ids(parsed, pair.pruned, ids)
    # Back to original ids, because now the original tokenizer is asked.
    steps = {manifest.kept_ids[new] for new in dead if manifest.reasons[new] == "m"}
    if steps:
        steps = set(unreachable_ids(read_tokenizer(base_folder), pair.original, steps))
    found = [new for new in dead if manifest.kept_ids[new] not in steps]
    first = f"{len(found)} unreachable tokens, first {parsed.tokens[found[0]]!r}" if found else None
    note = f"{len(found)} unreachable"
    if steps:
        note += f"; {len(steps)} steps of merges, which the original never produces either"
    return LawResult(3, title, len(ids), first, note)


def _law_4(manifest: Manifest, folder: Path, base_folder: Path, progress: Progress) -> LawResult:
    weights, sparse = weights_of_overlay(manifest, base_folder), _sparsified(folder)
    checked, found = compare_weights(weights, folder, progress, sparse)
    found = found or compare_index(weights, folder)
    note = "tensors and rows"
    if sparse:
        note += (
            f"; not {len(sparse)} matrices of the body, which kprune sparsify changed: with them, "
            "answers differ from the base's"
        )
    return LawResult(4, "weights are the base's, bit for bit", checked, found, note)


def _sparsified(folder: Path) -> frozenset[str]:
    """The matrices that a sparsified checkpoint says it changed; none in another one."""
    path = folder / SPARSITY_NAME
    named = read_object(path, NOTES).get("matrices") if path.is_file() else {}
    if not isinstance(named, dict):
        raise KPruneError(f"{path} is damaged: it should name the matrices that were sparsified")
    return frozenset(named)


def _law_5(
    manifest: Manifest, folder: Path, base_folder: Path, corpora: Sequence[Corpus]
) -> LawResult:
    title = "building again gives the same files"
    plan_again = make_tokenizer_plan if manifest.tokenizer_only else make_plan
    plan = plan_again(base_folder, manifest.profile, corpora=corpora)
    note = "selection repeated"
    digests = [(r.source.name, r.source.digest) for r in plan.rates]
    if digests != [(e.source, e.digest) for e in manifest.evidence]:
        note = (
            "selection not repeated: the evidence here is different (--corpus, --usage, versions)"
        )
        # The files can still be written again from the recorded selection and compared.
        reasons_differ = _required(plan.selection) != _required(manifest)
        plan = _with_selection(plan, manifest)
    else:
        reasons_differ = plan.selection.reasons != manifest.reasons
    with tempfile.TemporaryDirectory() as scratch:
        # The digests of the base were compared with its files just now.
        again = write_overlay(plan, Path(scratch), digests=manifest.base.files)
    found = "another reason for a token in kprune.json" if reasons_differ else None
    if again.kept_ids != manifest.kept_ids:
        differing = sorted(set(again.kept_ids) ^ set(manifest.kept_ids))
        found = f"another selection: {len(differing)} ids differ, first {differing[0]}"
    elif again.files != manifest.files:
        # Empty if the new build has files that the manifest lacks, and differs in nothing else.
        names = [n for n in manifest.files if again.files.get(n) != manifest.files[n]]
        found = f"{', '.join(names) or 'the list of files'} differs"
    parsed = read_tokenizer(folder)
    # Kept ids are new ids already, so the map is the identity, and nothing may change.
    if found is None and prune_tokenizer(parsed, sorted(parsed.tokens)) != parsed.data:
        found = "pruning the pruned tokenizer to its own tokens changes it"
    return LawResult(5, title, len(manifest.files), found, note)


def _required(chosen: Selection | Manifest) -> dict[int, str]:
    """The ids that evidence has no say in, with their reasons."""
    pairs = zip(chosen.kept_ids, chosen.reasons, strict=True)
    return {token_id: letter for token_id, letter in pairs if letter in "sbc"}


def _with_selection(plan: TokenizerPlan, manifest: Manifest) -> TokenizerPlan:
    return replace(plan, selection=Selection(manifest.kept_ids, manifest.reasons, {}))


def _law_6(folder: Path, base: TokenizerFolder, pair: _BothTokenizers) -> LawResult:
    """Each id in the overlay's files stands for the token that the base's file has there."""
    title = "every id in every file is mapped"
    checked = 0
    for name in CONFIG_FILES:
        if name == "tokenizer.json" or not (base.folder / name).is_file():
            continue
        if not (folder / name).is_file():
            return LawResult(6, title, checked, f"{name} is missing")
        if not name.endswith(".json"):
            continue
        before = _named_tokens(base.read_config(name), pair.original)
        after = _named_tokens(read_object(folder / name, MODEL_FILE), pair.pruned)
        checked += len(before)
        if before != after:
            place, token = next(iter(sorted(before.items() ^ after.items(), key=str)))
            return LawResult(6, title, checked, f"{name}: {place} names {token!r} on one side only")
    special = _post_processor_tokens(pair.original), _post_processor_tokens(pair.pruned)
    found = None if special[0] == special[1] else f"the post-processor adds {special[1]!r}"
    return LawResult(6, title, checked + len(special[0]), found)


def _named_tokens(value: dict[str, Any], tokenizer: Tokenizer) -> dict[str, str | None]:
    """Place in a file -> the token that the id there stands for."""
    found: dict[str, str | None] = {}

    def note(token_id: int, where: str) -> int:
        # Numbered, because all ids of a list share one place.
        found[f"{where} #{len(found)}"] = tokenizer.id_to_token(token_id)
        return token_id

    map_ids({k: v for k, v in value.items() if k != "added_tokens_decoder"}, note, "")
    return found


def _post_processor_tokens(tokenizer: Tokenizer) -> list[str | None]:
    """The tokens that encoding adds around an empty text, read back through the ids."""
    return [tokenizer.id_to_token(i) for i in tokenizer.encode("").ids]
