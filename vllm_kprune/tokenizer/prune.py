"""Rewrite a BPE `tokenizer.json` for a set of kept ids.

New ids are positions in the list of kept ids. A merge survives if its two parts and its result do,
and merges keep their order; so text whose original ids are all kept is encoded to the same tokens
(law 1). Every id in the file is mapped; an id that was not kept is an error, never a guess (law 6).
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from tokenizers import Tokenizer

from vllm_kprune.errors import KPruneError, shown
from vllm_kprune.tokenizer.bpe import BpeTokenizer
from vllm_kprune.tokenizer.encoder import whole_texts

__all__ = ["IdMap", "MapId", "prune_tokenizer", "pruned_tokenizer", "referenced_ids"]


# From an id, and the place where it stands, to the id to write.
MapId = Callable[[int, str], int]


class IdMap(Mapping[int, int]):
    """Original id -> new id. `required` raises `KPruneError` for an id that was not kept."""

    def __init__(self, kept_ids: Sequence[int]) -> None:
        self._new_ids = {old: new for new, old in enumerate(kept_ids)}

    def __getitem__(self, old: int) -> int:
        # A KeyError, because `in` and `get` of a Mapping rely on it.
        return self._new_ids[old]

    def __iter__(self) -> Any:
        return iter(self._new_ids)

    def __len__(self) -> int:
        return len(self._new_ids)

    def required(self, old: int, where: str) -> int:
        """The new id of `old`, which a file refers to at `where`."""
        try:
            return self._new_ids[old]
        except KeyError:
            raise KPruneError(f"{where} refers to token id {old}, which was not kept") from None


def prune_tokenizer(tokenizer: BpeTokenizer, kept_ids: Sequence[int]) -> dict[str, Any]:
    """The pruned `tokenizer.json`, as parsed JSON. Parts without ids are shared, not copied."""
    ids = IdMap(kept_ids)
    pruned = dict(tokenizer.data)
    pruned["model"] = _prune_model(tokenizer, ids)
    # An added token that was dropped is no longer matched: its text is encoded like any other.
    pruned["added_tokens"] = [
        {**entry, "id": ids[entry["id"]]}
        for entry in tokenizer.data.get("added_tokens") or ()
        if entry["id"] in ids
    ]
    return pruned | _map_settings(tokenizer.data, ids.required)


def pruned_tokenizer(tokenizer: BpeTokenizer, kept_ids: Sequence[int]) -> Tokenizer:
    """The pruned tokenizer, ready to encode, without truncation or padding."""
    return whole_texts(Tokenizer.from_str(json.dumps(prune_tokenizer(tokenizer, kept_ids))))


def referenced_ids(tokenizer: BpeTokenizer) -> Iterator[int]:
    """Ids that the file itself refers to: unknown token, padding, post-processor."""
    unknown = tokenizer.data["model"].get("unk_token")
    if unknown in tokenizer.vocab:
        yield tokenizer.vocab[unknown]
    found: list[int] = []

    def note(token_id: int, where: str) -> int:
        found.append(token_id)
        return token_id

    try:
        _map_settings(tokenizer.data, note)
    except (AttributeError, IndexError, KeyError, TypeError) as error:
        raise KPruneError(
            f"tokenizer.json: post_processor or padding is damaged: {error}"
        ) from None
    yield from found


def _prune_model(tokenizer: BpeTokenizer, ids: IdMap) -> dict[str, Any]:
    model: Mapping[str, Any] = tokenizer.data["model"]
    kept = {token: ids[old] for token, old in tokenizer.vocab.items() if old in ids}
    # `model["merges"]` are the same merges as in the file's own spelling, which is kept.
    merges = [
        spelled
        for spelled, (left, right) in zip(model["merges"], tokenizer.merges, strict=True)
        # The result is checked too: the library refuses a file that merges to an unknown token.
        if left in kept and right in kept and left + right in kept
    ]
    ordered = dict(sorted(kept.items(), key=lambda item: item[1]))
    return {**model, "vocab": ordered, "merges": merges}


def _map_settings(data: Mapping[str, Any], map_id: MapId) -> dict[str, Any]:
    """The parts of a tokenizer.json besides its tokens that have ids, mapped."""
    mapped: dict[str, Any] = {}
    if post_processor := data.get("post_processor"):
        mapped["post_processor"] = _map_post_processor(post_processor, map_id)
    if padding := data.get("padding"):
        new_id = map_id(padding["pad_id"], "tokenizer.json: padding")
        mapped["padding"] = {**padding, "pad_id": new_id}
    return mapped


def _map_post_processor(step: Mapping[str, Any], map_id: MapId) -> dict[str, Any]:
    kind = step.get("type")
    where = f"tokenizer.json: post_processor {shown(kind)[1:-1]}"
    if kind == "Sequence":
        return {**step, "processors": [_map_post_processor(s, map_id) for s in step["processors"]]}
    if kind == "TemplateProcessing":
        special = {
            name: {**token, "ids": [map_id(i, where) for i in token["ids"]]}
            for name, token in step["special_tokens"].items()
        }
        return {**step, "special_tokens": special}
    if kind in ("BertProcessing", "RobertaProcessing"):
        mapped = {key: [step[key][0], map_id(step[key][1], where)] for key in ("sep", "cls")}
        return {**step, **mapped}
    # ByteLevel has no ids.
    if kind == "ByteLevel":
        return dict(step)
    raise KPruneError(f"{where} is of an unknown kind, so its token ids cannot be mapped")
