"""Rebuild a `tokenizer.json` from the vocabulary inside a GGUF file.

Why: the one that transformers derives adds no `<bos>`, lists the merges in another order than
the file that the model's makers published (Gemma-3), or splits numbers otherwise (SmolLM2); all
change what the model sees. The rules below reproduce Google's Gemma-3 file and Alibaba's of
Qwen2.5 object for object (tests compare them).
Covers SentencePiece BPE with byte fallback (`tokenizer.ggml.model: llama`) without a space prefix,
and byte-level BPE (`gpt2`) of the kinds in `_BYTE_LEVEL_KINDS`. A chat template is written if the
file carries one; a base model's does not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from vllm_kprune.demo.reference.gguf_file import MetaValue
from vllm_kprune.errors import KPruneError

__all__ = ["SentencePieces", "merges_of", "pieces_of", "tokenizer_config", "tokenizer_json"]

_CONTROL, _USER_DEFINED, _UNUSED = 3, 4, 5  # tokenizer.ggml.token_type
_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"


@dataclass(frozen=True)
class _ByteLevelKind:
    """What the makers' tokenizer.json says around byte-level BPE, and the GGUF file does not.

    `splits` cut a text before BPE; `model` is what the model's settings have besides. With
    `added_apart`, added tokens are not in the model's vocabulary too.
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
_QWEN_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_BYTE_LEVEL_KINDS = {  # by tokenizer.ggml.pre
    "qwen2": _ByteLevelKind(
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
    "smollm": _ByteLevelKind(
        splits=({"type": "Digits", "individual_digits": True}, _SMOLLM_BYTES),
        decoder={**_SMOLLM_BYTES, "add_prefix_space": True},
        model={"continuing_subword_prefix": None, "end_of_word_suffix": None},
    ),
}


@dataclass(frozen=True)
class SentencePieces:
    """The vocabulary in order of id: text, score and type of each piece."""

    texts: tuple[str, ...]
    scores: tuple[float, ...]
    types: tuple[int, ...]


def pieces_of(metadata: Mapping[str, MetaValue]) -> SentencePieces:
    """Take the vocabulary out of GGUF metadata, as SentencePiece has it.

    GGUF writes the spaces of user-defined pieces plainly and gives these pieces the score -1000;
    SentencePiece has `▁` and 0.

    Raises:
        KPruneError: the metadata describes another kind of tokenizer.
    """
    kind = metadata.get("tokenizer.ggml.model")
    if kind != "llama" or metadata.get("tokenizer.ggml.add_space_prefix", True):
        raise KPruneError(
            f"tokenizer of the GGUF file is {kind!r}; only SentencePiece BPE without a space "
            "prefix ('llama', add_space_prefix false) and byte-level BPE ('gpt2') can be converted"
        )
    texts, scores, types = (_array(metadata, name) for name in ("tokens", "scores", "token_type"))
    user_defined = [kind == _USER_DEFINED for kind in types]
    return SentencePieces(
        tuple(t.replace(" ", _SPACE) if u else t for t, u in zip(texts, user_defined, strict=True)),
        tuple(0.0 if u else s for s, u in zip(scores, user_defined, strict=True)),
        tuple(types),
    )


def _array(metadata: Mapping[str, MetaValue], name: str) -> list[Any]:
    value = metadata.get(f"tokenizer.ggml.{name}")
    if not isinstance(value, list):
        raise KPruneError(f"the GGUF file has no tokenizer.ggml.{name}")
    return value


def merges_of(pieces: SentencePieces) -> list[tuple[str, str]]:
    """List the BPE merges in the order of the published files.

    Every split of a piece into two pieces is a merge. Splits of one piece are ordered by the ids
    of their parts; then all merges, stably, by falling (score, left length, right length). This
    is the SentencePiece extractor of transformers up to version 4, which the makers used.

    >>> p = SentencePieces(("a", "b", "ab", "aba"), (-3.0, -2.0, 0.0, -1.0), (1, 1, 1, 1))
    >>> merges_of(p)
    [('a', 'b'), ('ab', 'a')]
    """
    ids = {text: index for index, text in enumerate(pieces.texts)}
    found: list[tuple[float, int, int, int, int]] = []
    for text, score in zip(pieces.texts, pieces.scores, strict=True):
        splits = []
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

    `special` names the tokens to flag as special besides those that the metadata names; None flags
    all control tokens. `past_vocabulary` are special tokens with ids after the last piece (they
    have no embedding).
    """
    if _is_byte_level(metadata):
        return _byte_level_json(metadata, special)
    pieces = pieces_of(metadata)
    named = _named_tokens(metadata, pieces.texts)
    if "unk_token" not in named:
        raise KPruneError("the GGUF file names no unknown token (tokenizer.ggml.unknown_token_id)")
    added = _added_tokens(pieces.texts, pieces.types, named, special)
    added += [
        _added_token(index, text, True)
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
        "post_processor": _post_processor(metadata, named, pieces.texts),
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


def _byte_level_json(
    metadata: Mapping[str, MetaValue], special: Sequence[str] | None
) -> dict[str, Any]:
    """Byte-level BPE: the merges are in the file. A byte without a token of its own is dropped."""
    split = metadata.get("tokenizer.ggml.pre")
    if not isinstance(split, str) or split not in _BYTE_LEVEL_KINDS:
        known = ", ".join(sorted(_BYTE_LEVEL_KINDS))
        raise KPruneError(
            f"byte-level tokenizer of the GGUF file splits text as {split!r} (known: {known})"
        )
    around = _BYTE_LEVEL_KINDS[split]
    texts, types = (_array(metadata, name) for name in ("tokens", "token_type"))
    named = _named_tokens(metadata, texts)
    added = _added_tokens(texts, types, named, special)
    apart = {token["id"] for token in added} if around.added_apart else set()
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": around.normalizer,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": around.splits},
        "post_processor": around.post_processor or _post_processor(metadata, named, texts),
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
                if kind != _UNUSED and index not in apart
            },
            "merges": _array(metadata, "merges"),
        },
    }


def tokenizer_config(metadata: Mapping[str, MetaValue], max_length: int) -> dict[str, Any]:
    """Build the object of `tokenizer_config.json`, with the chat template that the file carries."""
    byte_level = _is_byte_level(metadata)
    texts = _array(metadata, "tokens") if byte_level else pieces_of(metadata).texts
    template = metadata.get("tokenizer.chat_template")
    return {
        "add_bos_token": bool(metadata.get("tokenizer.ggml.add_bos_token")),
        "add_eos_token": bool(metadata.get("tokenizer.ggml.add_eos_token")),
        **_named_tokens(metadata, texts),
        **({"chat_template": template} if isinstance(template, str) else {}),
        "clean_up_tokenization_spaces": False,
        "model_max_length": max_length,
        "spaces_between_special_tokens": False,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }


def _named_tokens(metadata: Mapping[str, MetaValue], texts: Sequence[str]) -> dict[str, str]:
    names = {"bos": "bos_token", "eos": "eos_token", "unknown": "unk_token", "padding": "pad_token"}
    named = {}
    for key, name in names.items():
        index = metadata.get(f"tokenizer.ggml.{key}_token_id")
        if isinstance(index, int):
            named[name] = texts[index]
    return named


def _added_tokens(
    texts: Sequence[str],
    types: Sequence[int],
    named: Mapping[str, str],
    special: Sequence[str] | None,
) -> list[dict[str, Any]]:
    flagged = {*named.values(), *(special or ())}
    return [
        _added_token(index, text, text in flagged or (special is None and kind == _CONTROL))
        for index, (text, kind) in enumerate(zip(texts, types, strict=True))
        if kind in (_CONTROL, _USER_DEFINED)
    ]


def _added_token(index: int, content: str, special: bool) -> dict[str, Any]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {"id": index, "content": content, **flags, "special": special}


def _post_processor(
    metadata: Mapping[str, MetaValue], named: Mapping[str, str], texts: Sequence[str]
) -> dict[str, Any] | None:
    if not metadata.get("tokenizer.ggml.add_bos_token"):
        return None
    bos = named["bos_token"]

    def part(name: str, type_id: int) -> list[dict[str, Any]]:
        return [
            {"SpecialToken": {"id": bos, "type_id": type_id}},
            {"Sequence": {"id": name, "type_id": type_id}},
        ]

    ids = [texts.index(bos)]
    return {
        "type": "TemplateProcessing",
        "single": part("A", 0),
        "pair": [*part("A", 0), *part("B", 1)],
        "special_tokens": {bos: {"id": bos, "ids": ids, "tokens": [bos]}},
    }
