"""Texts that are hard to cut, and a scorer for tests."""

import random
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
from hypothesis import strategies as st
from tokenizers import Tokenizer

from vllm_kprune.prompt.cut_text import CutText
from vllm_kprune.prompt.pieces import Unit, cut_pieces
from vllm_kprune.prompt.scorers import RandomScores, Scorer
from vllm_kprune.prompt.text_pruner import TextPruner
from vllm_kprune.prompt.tokens import Tokens

HARD = (
    *("👩‍👩‍👧‍👦", "🏳️‍🌈", "👍🏽", "🇰🇷🇺🇸", "1️⃣", "e\u0301", "\u0301", "\u200d", "\ufe0f"),
    *("각", "한글", "한국의", "漢字", "中国文化", "日本語", "ภาษาไทย"),
    *("नमस्ते", "שָׁלוֹם", "ٱلْعَرَبِيَّة", "１２３", "\u3000", "\ufffd", "\U0010ffff"),
    *("\r\n", "\n\n", "\t", "  ", "\x00", "\x1b[0m", "\u202e"),
    *("def f(x):\n    return x\n", "don't", "3.14", "U.S.", "</div>", "<bos>", "<unused1>"),
)
_ANY = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
UNICODE = st.lists(st.sampled_from(HARD) | _ANY, max_size=12).map("".join)


def random_text(rng: random.Random) -> str:
    """Characters of all planes, without surrogates, between texts of `HARD`."""
    characters = (
        rng.choice((rng.randrange(0xD800), rng.randrange(0xE000, 0x110000)))
        for _ in range(rng.randrange(12))
    )
    parts = [chr(c) for c in characters] + rng.choices(HARD, k=rng.randrange(12))
    rng.shuffle(parts)
    return "".join(parts)


class GivenScores:
    """The scores that a test chose, for a text whose tokens it knows: a piece has their mean."""

    name = "given"
    uses_query = False

    def __init__(self, scores: Sequence[float]) -> None:
        self._scores = scores

    def scores(
        self,
        passage: CutText,
        *,
        query: str | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> npt.NDArray[np.float64]:
        assert len(passage.tokens.ids) == len(self._scores)
        return passage.pieces.means(np.array(self._scores, dtype=np.float32))


def pruner_of(tokenizer: Tokenizer, scorer: Scorer | None = None) -> TextPruner:
    """A pruner with one scorer, by default one of random scores."""
    return TextPruner(tokenizer, lambda name: scorer or RandomScores(), "test")


def passage_of(text: str, unit: Unit = "word", ids: Sequence[int] | None = None) -> CutText:
    """A text whose characters are its tokens."""
    offsets = tuple((n, n + 1) for n in range(len(text)))
    tokens = Tokens(text, tuple(range(len(text)) if ids is None else ids), offsets)
    return CutText(tokens, cut_pieces(text, offsets, unit))
