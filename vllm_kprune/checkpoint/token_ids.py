"""Find and map every token id in a model's configuration files (law 6).

Ids are recognised by the names that transformers gives them (`eos_token_id`, `image_token_index`,
`suppress_tokens`, …), at any depth. A whole number under another name that mentions tokens is an
error unless the name is known to be a count (`max_new_tokens`): kprune does not guess.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from vllm_kprune.errors import KPruneError, shown
from vllm_kprune.tokenizer.prune import MapId

__all__ = ["map_ids", "named_ids", "token_texts"]

_MOST_DIGITS = 9

_ID_NAME = re.compile(
    r"(^|_)token_(id|ids|idx|index|indices)$"
    r"|(^|_)(bos|eos|pad|unk|sep|cls|mask)_(id|ids|idx|index)$"
    r"|^(begin_)?suppress_tokens$|^bad_words_ids$"
)
# These mix token ids with positions or weights, which look the same.
_MIXED_NAMES = frozenset({"forced_decoder_ids", "sequence_bias"})
_COUNT_NAME = re.compile(
    r"(^|_)(max|min|num|n|per|total|length|len|size|count|dropout|weight|penalty|router|type"
    r"|top|spaces|use|split|add|budget)(_|$)"
)
_TEXT_NAME = re.compile(r"(^|_)token$|^(additional|extra)_special_tokens$")


def map_ids(value: Any, map_id: MapId, where: str) -> Any:
    """A copy of parsed JSON with `map_id(id, place)` applied to every token id.

    Negative ids and null mean "none" and are kept. `where` names the file in errors.

    >>> map_ids({"eos_token_id": [7, -1], "max_new_tokens": 7}, lambda i, where: i - 2, "config")
    {'eos_token_id': [5, -1], 'max_new_tokens': 7}
    """
    if isinstance(value, list):
        return [map_ids(item, map_id, where) for item in value]
    if not isinstance(value, dict):
        return value
    # The path of keys grows in `where`, so an error names the place: "config.json: text_config: …".
    return {key: _map_entry(key, item, map_id, f"{where}: {key}") for key, item in value.items()}


def _map_entry(key: str, item: Any, map_id: MapId, where: str) -> Any:
    if _ID_NAME.search(key):
        return _map_all(item, map_id, where)
    if key in _MIXED_NAMES and item:
        raise KPruneError(
            f"{where} holds token ids among other numbers, which kprune does not map; remove it "
            "from the file, and set it where the model is used"
        )
    # After the names that are known to hold ids. To take an unknown name for a count would leave an
    # id that stands for another token after pruning.
    if "token" in key and not _COUNT_NAME.search(key) and _holds_whole_numbers(item):
        raise KPruneError(
            f"{where} holds {shown(item)}, and kprune does not know whether that is a token id; "
            "please report it with the model's name"
        )
    return map_ids(item, map_id, where)


def _map_all(item: Any, map_id: MapId, where: str) -> Any:
    if isinstance(item, list):
        return [_map_all(part, map_id, where) for part in item]
    # True is an int in Python.
    if isinstance(item, int) and not isinstance(item, bool) and item >= 0:
        return map_id(item, where)
    if item is None or isinstance(item, int):
        return item
    raise KPruneError(f"{where} holds {shown(item)}, expected token ids")


def _holds_whole_numbers(item: Any) -> bool:
    if isinstance(item, list):
        return any(_holds_whole_numbers(part) for part in item)
    return isinstance(item, int) and not isinstance(item, bool)


def named_ids(value: Any, where: str) -> dict[int, Any]:
    """A mapping with ids as keys, which JSON writes as text; null has none.

    >>> named_ids({"7": "<pad>"}, "added_tokens_decoder")
    {7: '<pad>'}
    """
    if not isinstance(value, dict | None):
        raise KPruneError(f"{where} is {shown(value)}, expected tokens by their ids")
    for key in value or ():
        if not (key.isascii() and key.isdecimal() and len(key) <= _MOST_DIGITS):
            raise KPruneError(f"{where} holds {shown(key)}, expected token ids")
    return {int(key): item for key, item in (value or {}).items()}


def token_texts(value: Any) -> Iterator[str]:
    """Texts of tokens that a tokenizer_config or special_tokens_map names (`bos_token`, …)."""
    if not isinstance(value, Mapping):
        return
    for key, item in value.items():
        # add_bos_token matches as well; its value is no text, so `_contents` finds none in it.
        if _TEXT_NAME.search(key):
            yield from _contents(item)


def _contents(item: Any) -> Iterator[str]:
    if isinstance(item, str):
        yield item
    elif isinstance(item, Mapping):
        content = item.get("content")
        # With `content`, one token written out with its flags; otherwise names and their tokens.
        parts = [content] if isinstance(content, str) else item.values()
        for part in parts:
            yield from _contents(part)
    elif isinstance(item, list):
        for part in item:
            yield from _contents(part)
