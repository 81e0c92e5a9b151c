"""What a GGUF file says of a tokenizer, whichever kind it is: arrays, named tokens, added tokens.

The metadata is that of `tokenizer.ggml.*` in docs/gguf.md of ggml-org/ggml.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vllm_kprune.demo.reference.gguf_file import MetaValue
from vllm_kprune.errors import KPruneError

__all__ = [
    "CONTROL",
    "UNUSED",
    "USER_DEFINED",
    "added_token",
    "added_tokens",
    "metadata_array",
    "named_tokens",
    "post_processor",
]

CONTROL, USER_DEFINED, UNUSED = 3, 4, 5  # values of tokenizer.ggml.token_type


def metadata_array(metadata: Mapping[str, MetaValue], name: str) -> list[Any]:
    """The array `tokenizer.ggml.<name>`; `KPruneError` if there is none."""
    value = metadata.get(f"tokenizer.ggml.{name}")
    if not isinstance(value, list):
        raise KPruneError(f"the GGUF file has no tokenizer.ggml.{name}")
    return value


def named_tokens(metadata: Mapping[str, MetaValue], texts: Sequence[str]) -> dict[str, str]:
    """Role as transformers names it ("bos_token") -> token, for the roles that the file fills."""
    names = {"bos": "bos_token", "eos": "eos_token", "unknown": "unk_token", "padding": "pad_token"}
    named = {}
    for key, name in names.items():
        index = metadata.get(f"tokenizer.ggml.{key}_token_id")
        if isinstance(index, int):
            named[name] = texts[index]
    return named


def added_tokens(
    texts: Sequence[str],
    types: Sequence[int],
    named: Mapping[str, str],
    special: Sequence[str] | None,
) -> list[dict[str, Any]]:
    """The entries of `added_tokens`; `special` are flagged besides `named`, None flags controls."""
    flagged = {*named.values(), *(special or ())}
    return [
        added_token(index, text, text in flagged or (special is None and kind == CONTROL))
        for index, (text, kind) in enumerate(zip(texts, types, strict=True))
        if kind in (CONTROL, USER_DEFINED)
    ]


def added_token(index: int, content: str, special: bool) -> dict[str, Any]:
    """An entry of `added_tokens`."""
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {"id": index, "content": content, **flags, "special": special}


def post_processor(
    metadata: Mapping[str, MetaValue], named: Mapping[str, str], texts: Sequence[str]
) -> dict[str, Any] | None:
    """The step that puts `<bos>` before a text, if the file asks for it."""
    if not metadata.get("tokenizer.ggml.add_bos_token"):
        return None
    bos = named["bos_token"]

    def part(name: str, type_id: int) -> list[dict[str, Any]]:
        return [
            {"SpecialToken": {"id": bos, "type_id": type_id}},
            {"Sequence": {"id": name, "type_id": type_id}},
        ]

    # The position of a token is its id.
    ids = [texts.index(bos)]
    return {
        "type": "TemplateProcessing",
        "single": part("A", 0),
        "pair": [*part("A", 0), *part("B", 1)],
        "special_tokens": {bos: {"id": bos, "ids": ids, "tokens": [bos]}},
    }
