"""Rebuild a byte-level `tokenizer.json` from the vocabulary inside a GGUF file.

The file has the vocabulary and the merges. How text is split before BPE, it says only by a name
(`tokenizer.ggml.pre`): the rest of the makers' file is a row in a table here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from vllm_kprune.demo.reference.gguf_file import MetaValue
from vllm_kprune.demo.reference.gguf_vocabulary import (
    UNUSED,
    added_tokens,
    metadata_array,
    named_tokens,
    post_processor,
)
from vllm_kprune.errors import KPruneError

__all__ = ["byte_level_json"]


@dataclass(frozen=True)
class _Kind:
    """What the makers' tokenizer.json has around byte-level BPE, and the GGUF file does not.

    `splits` cut a text before BPE; `model` has further settings of the model. With `added_apart`,
    added tokens are not in the model's vocabulary.
    """

    splits: Sequence[Mapping[str, Any]]
    decoder: Mapping[str, Any]
    normalizer: Mapping[str, Any] | None = None
    post_processor: Mapping[str, Any] | None = None
    model: Mapping[str, Any] = field(default_factory=dict)
    added_apart: bool = False


def _byte_level(**settings: bool) -> dict[str, Any]:
    return {"type": "ByteLevel", "add_prefix_space": False, **settings}


_SMOLLM_BYTES = _byte_level(trim_offsets=True, use_regex=True)
_QWEN_BYTES = _byte_level(trim_offsets=False, use_regex=False)
# As in Alibaba's own tokenizer.json.
_QWEN_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_KINDS = {  # by tokenizer.ggml.pre
    "qwen2": _Kind(
        splits=(
            {
                "type": "Split",
                "pattern": {"Regex": _QWEN_WORDS},
                "behavior": "Isolated",
                "invert": False,
            },
            _QWEN_BYTES,
        ),
        decoder=_QWEN_BYTES,
        normalizer={"type": "NFC"},
        post_processor=_QWEN_BYTES,
        model={"continuing_subword_prefix": "", "end_of_word_suffix": ""},
        added_apart=True,
    ),
    "smollm": _Kind(
        splits=({"type": "Digits", "individual_digits": True}, _SMOLLM_BYTES),
        decoder={**_SMOLLM_BYTES, "add_prefix_space": True},
        model={"continuing_subword_prefix": None, "end_of_word_suffix": None},
    ),
}


def byte_level_json(
    metadata: Mapping[str, MetaValue], special: Sequence[str] | None
) -> dict[str, Any]:
    """Build the object of `tokenizer.json`. A byte without a token of its own is dropped."""
    split = metadata.get("tokenizer.ggml.pre")
    if not isinstance(split, str) or split not in _KINDS:
        known = ", ".join(sorted(_KINDS))
        raise KPruneError(
            f"the byte-level tokenizer of the GGUF file splits text as {split!r} (known: {known})"
        )
    around = _KINDS[split]
    texts, types = (metadata_array(metadata, name) for name in ("tokens", "token_type"))
    named = named_tokens(metadata, texts)
    added = added_tokens(texts, types, named, special)
    # Qwen's file has added tokens outside of the vocabulary, SmolLM's has them in both.
    apart = {token["id"] for token in added} if around.added_apart else set()
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": around.normalizer,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": around.splits},
        "post_processor": around.post_processor or post_processor(metadata, named, texts),
        "decoder": around.decoder,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            **around.model,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {
                text: index
                for index, (text, kind) in enumerate(zip(texts, types, strict=True))
                if kind != UNUSED and index not in apart
            },
            "merges": metadata_array(metadata, "merges"),
        },
    }
