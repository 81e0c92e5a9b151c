"""Small real tokenizers, trained here: byte-level (Qwen, Llama-3) and byte-fallback (Gemma)."""

import json
from functools import cache
from typing import Any

from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

SENTENCES = (
    "the cat sat on the mat, and the other cats sat there too.",
    "The weather in Seoul is fine; the weather in Busan is finer than that.",
    "for item in items:\n    print(item)\n\n    return items[0]\n",
    "나는 오늘 학교에 갔다. 오늘 날씨가 좋다. 나는 학교가 좋다.",
    "대한민국의 수도는 서울이다. 서울의 날씨는 오늘도 좋다.",
    "大韓民國 漢字 學校 學生 中國人民 中国人民 学校 学生们",
    "これは日本語です。日本語の文章です。カタカナもあります。",
    "ภาษาไทย ประเทศไทย สวัสดีครับ สวัสดีค่ะ",
    "Привет мир, это русский текст. Привет всем.",
    "αβγ δελτα άλφα βήτα 1 2 3 2024 · … “quotes” – 😀 😀 👩‍👩‍👧",
)
SPECIALS = ("<pad>", "<eos>", "<bos>", "<unk>")
RESERVED = tuple(f"<unused{n}>" for n in range(5))
BYTES = tuple(f"<0x{value:02X}>" for value in range(256))


@cache
def byte_level_tokenizer() -> Tokenizer:
    """Byte-level BPE of 900 tokens with four control tokens and five reserved ones at the end."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=900,
        show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    tokenizer.train_from_iterator(SENTENCES * 3, trainer)
    tokenizer.add_special_tokens([*SPECIALS, *RESERVED])
    tokenizer.post_processor = processors.Sequence(
        [processors.ByteLevel(trim_offsets=False), _begin(tokenizer)]
    )
    return tokenizer


@cache
def byte_fallback_tokenizer() -> Tokenizer:
    """BPE over characters with 256 byte tokens in front, spelled and decoded as Gemma does."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=900, show_progress=False, special_tokens=[*SPECIALS, *RESERVED, *BYTES]
    )
    tokenizer.train_from_iterator(SENTENCES * 3, trainer)
    tokenizer.post_processor = _begin(tokenizer)
    data = json.loads(tokenizer.to_str())
    data["added_tokens"] = [t for t in data["added_tokens"] if t["content"] not in BYTES]
    return Tokenizer.from_str(json.dumps(data))


def _begin(tokenizer: Tokenizer) -> processors.TemplateProcessing:
    """`<bos>` before every text."""
    bos = ("<bos>", tokenizer.token_to_id("<bos>"))
    return processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A <bos> $B", special_tokens=[bos]
    )


def data_of(tokenizer: Tokenizer) -> dict[str, Any]:
    """Its `tokenizer.json`, parsed."""
    data: dict[str, Any] = json.loads(tokenizer.to_str())
    return data


TINY = {"byte_level": byte_level_tokenizer, "byte_fallback": byte_fallback_tokenizer}
