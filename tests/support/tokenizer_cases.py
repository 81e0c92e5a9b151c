"""A tokenizer, its pruned form, and the laws that hold between them."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from vllm_kprune.tokenizer.bpe import BpeTokenizer, parse_tokenizer
from vllm_kprune.tokenizer.prune import prune_tokenizer

SETTINGS = settings(max_examples=150)


@dataclass(frozen=True)
class Pair:
    """The original tokenizer and its pruned form."""

    parsed: BpeTokenizer
    original: Tokenizer
    kept_ids: tuple[int, ...]

    @cached_property
    def data(self) -> dict[str, Any]:
        return prune_tokenizer(self.parsed, self.kept_ids)

    @cached_property
    def pruned(self) -> Tokenizer:
        return Tokenizer.from_str(json.dumps(self.data, ensure_ascii=False))

    @cached_property
    def new_ids(self) -> dict[int, int]:
        return {old: new for new, old in enumerate(self.kept_ids)}

    def covers(self, text: str) -> bool:
        """Are all ids of the original's encoding kept?"""
        return all(i in self.new_ids for i in self.original.encode(text).ids)

    def uncovered(self, texts: Sequence[str]) -> tuple[list[str], int]:
        """Texts that break law 1, and the number of texts that it speaks of."""
        broken, covered = [], 0
        old = self.original.encode_batch(texts)
        new = self.pruned.encode_batch(texts)
        for text, before, after in zip(texts, old, new, strict=True):
            if all(i in self.new_ids for i in before.ids):
                covered += 1
                if [self.new_ids[i] for i in before.ids] != after.ids:
                    broken.append(text)
        return broken, covered

    def lossy(self, texts: Sequence[str]) -> list[str]:
        """Texts that break law 2."""
        broken = []
        for text in texts:
            before = self.original.decode(self.original.encode(text).ids, skip_special_tokens=False)
            after = self.pruned.decode(self.pruned.encode(text).ids, skip_special_tokens=False)
            if before != after:
                broken.append(text)
        return broken


def pair_of(tokenizer: Tokenizer, kept_ids: Sequence[int]) -> Pair:
    """The pair for a tokenizer and kept ids in any order."""
    parsed = parse_tokenizer(json.loads(tokenizer.to_str()))
    return Pair(parsed, tokenizer, tuple(sorted(kept_ids)))


_HANGUL = st.text(st.characters(min_codepoint=0xAC00, max_codepoint=0xD7A3), max_size=12)
_JAMO = st.text(st.characters(min_codepoint=0x1100, max_codepoint=0x11FF), max_size=8)
_SPACES = st.text(st.sampled_from(" \n\t\r\u00a0\u3000"), max_size=12)
_PIECES = st.sampled_from(
    [
        *("👩‍👩‍👧‍👦", "🏳️‍🌈", "👍🏽", "é", "e\u0301", "ß", "ﬁ", "Ⅷ", "·", "…", "“ ”"),
        *("한글", "나는", "ㅋㅋㅋ", "漢字", "中国", "日本語", "ภาษา", "привет", "ٱلْ"),
        *("def f(x):\n    return x\n", "for i in range(10):", "</div>", "www.example.com", "3.14"),
        *("<unused1>", "<bos>", "<eos>", "<0xEC>", "▁", "▁▁", "\n\n", "    ", "\t\t"),
        *("\u200d", "\ufeff", "\u202e", "\U0010ffff", "\x00"),
    ]
)
TEXTS = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=30),
    st.lists(st.one_of(_HANGUL, _JAMO, _SPACES, _PIECES, st.text("abcXYZ ,.0", max_size=8))).map(
        "".join
    ),
)
