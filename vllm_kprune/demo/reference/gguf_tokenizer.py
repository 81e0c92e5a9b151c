"""Rebuild a `tokenizer.json` from the vocabulary inside a GGUF file.

Why not with transformers: the file that it derives adds no `<bos>`, lists the merges in another
order than the makers' file (Gemma-3), or splits numbers differently (SmolLM2), and each of these
changes what the model sees. The rules here reproduce Google's Gemma-3 file and Alibaba's Qwen2.5
file object for object, as tests show.

Covers SentencePiece BPE with byte fallback (`tokenizer.ggml.model: llama`) without a space prefix,
and byte-level BPE (`gpt2`) of the kinds that `gguf_byte_level` knows. A chat template is written if
the file has one; a base model's file does not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vllm_kprune.demo.reference.gguf_byte_level import byte_level_json
from vllm_kprune.demo.reference.gguf_file import MetaValue
from vllm_kprune.demo.reference.gguf_vocabulary import (
    USER_DEFINED,
    added_token,
    added_tokens,
    metadata_array,
    named_tokens,
    post_processor,
)
from vllm_kprune.errors import KPruneError

__all__ = ["SentencePieces", "merges_of", "pieces_of", "tokenizer_config", "tokenizer_json"]

_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"


@dataclass(frozen=True)
class SentencePieces:
    """The vocabulary in order of id: text, score and type of each piece."""

    texts: tuple[str, ...]
    scores: tuple[float, ...]
    types: tuple[int, ...]


def pieces_of(metadata: Mapping[str, MetaValue]) -> SentencePieces:
    """Read the vocabulary from GGUF metadata, as SentencePiece has it.

    For user-defined pieces GGUF has plain spaces and the score -1000; SentencePiece has `▁` and 0.

    Raises:
        KPruneError: the metadata describes another kind of tokenizer.
    """
    kind = metadata.get("tokenizer.ggml.model")
    # A missing key means True: SentencePiece adds a space unless it is told not to.
    if kind != "llama" or metadata.get("tokenizer.ggml.add_space_prefix", True):
        raise KPruneError(
            f"the tokenizer of the GGUF file is {kind!r}; only SentencePiece BPE without a space "
            "prefix ('llama', add_space_prefix false) and byte-level BPE ('gpt2') can be converted"
        )
    texts, scores, types = (
        metadata_array(metadata, name) for name in ("tokens", "scores", "token_type")
    )
    user_defined = [kind == USER_DEFINED for kind in types]
    return SentencePieces(
        tuple(t.replace(" ", _SPACE) if u else t for t, u in zip(texts, user_defined, strict=True)),
        tuple(0.0 if u else s for s, u in zip(scores, user_defined, strict=True)),
        tuple(types),
    )


def merges_of(pieces: SentencePieces) -> list[tuple[str, str]]:
    """List the BPE merges in the order of the published files.

    Every split of a piece into two pieces is a merge. The splits of one piece are ordered by the
    ids of their parts; then all merges are sorted by (score, left length, right length), largest
    first, with ties left in order. This is what transformers did up to version 4, with which the
    makers wrote their files.

    >>> p = SentencePieces(("a", "b", "ab", "aba"), (-3.0, -2.0, 0.0, -1.0), (1, 1, 1, 1))
    >>> merges_of(p)
    [('a', 'b'), ('ab', 'a')]
    """
    ids = {text: index for index, text in enumerate(pieces.texts)}
    found: list[tuple[float, int, int, int, int]] = []
    for text, score in zip(pieces.texts, pieces.scores, strict=True):
        splits = []
        # "aba" can be cut into a|ba and ab|a; only cuts into two known pieces are merges.
        for cut in range(1, len(text)):
            left = ids.get(text[:cut])
            if left is not None and (right := ids.get(text[cut:])) is not None:
                splits.append((left, right, cut))
        splits.sort()
        found += [(score, cut, len(text) - cut, left, right) for left, right, cut in splits]
    found.sort(key=lambda merge: merge[:3], reverse=True)  # stable: equal keys stay in order
    return [(pieces.texts[left], pieces.texts[right]) for *_, left, right in found]


def tokenizer_json(
    metadata: Mapping[str, MetaValue],
    special: Sequence[str] | None = None,
    past_vocabulary: Sequence[str] = (),
) -> dict[str, Any]:
    """Build the object of `tokenizer.json`.

    `special` are the tokens to flag as special besides those that the metadata names; None flags
    all control tokens. `past_vocabulary` are special tokens with ids after the last piece, which
    have no embedding.
    """
    if _is_byte_level(metadata):
        return byte_level_json(metadata, special)
    pieces = pieces_of(metadata)
    named = named_tokens(metadata, pieces.texts)
    if "unk_token" not in named:
        raise KPruneError("the GGUF file names no unknown token (tokenizer.ggml.unknown_token_id)")
    added = added_tokens(pieces.texts, pieces.types, named, special)
    added += [
        added_token(index, text, True)
        # Ids go on after the last piece.
        for index, text in enumerate(past_vocabulary, len(pieces.texts))
    ]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE},
        "pre_tokenizer": {
            "type": "Split",
            "pattern": {"String": " "},
            "behavior": "MergedWithPrevious",
            "invert": False,
        },
        "post_processor": post_processor(metadata, named, pieces.texts),
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
            ],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": named["unk_token"],
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": {text: index for index, text in enumerate(pieces.texts)},
            "merges": [list(merge) for merge in merges_of(pieces)],
        },
    }


def _is_byte_level(metadata: Mapping[str, MetaValue]) -> bool:
    return metadata.get("tokenizer.ggml.model") == "gpt2"


def tokenizer_config(metadata: Mapping[str, MetaValue], max_length: int) -> dict[str, Any]:
    """Build the object of `tokenizer_config.json`, with the file's chat template if it has one."""
    byte_level = _is_byte_level(metadata)
    # Not `pieces_of` for both: it refuses a byte-level vocabulary.
    texts = metadata_array(metadata, "tokens") if byte_level else pieces_of(metadata).texts
    template = metadata.get("tokenizer.chat_template")
    return {
        "add_bos_token": bool(metadata.get("tokenizer.ggml.add_bos_token")),
        "add_eos_token": bool(metadata.get("tokenizer.ggml.add_eos_token")),
        **named_tokens(metadata, texts),
        **({"chat_template": template} if isinstance(template, str) else {}),
        "clean_up_tokenization_spaces": False,
        "model_max_length": max_length,
        "spaces_between_special_tokens": False,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
