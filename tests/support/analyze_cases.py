"""Text in two languages, and prunings of a small model, for the tests of `kprune analyze`."""

import random
from pathlib import Path

from vllm_kprune.sparsify.options import SparsifyOptions
from vllm_kprune.sparsify.run import sparsify_model

__all__ = ["prune_by_magnitude", "write_texts"]

_WORDS = {
    "en": "this is a plain text about the weather of the city and the people who live there",
    "ko": "이 글은 도시의 날씨와 그곳에 사는 사람들에 대한 평범한 한국어 문장 입니다 오늘 아침",
}


def write_texts(folder: Path) -> dict[str, Path]:
    """A file of 12 lines in English and in Korean; the words are in another order in each line."""
    paths = {}
    for language, words in _WORDS.items():
        shuffled = random.Random(0)
        lines = [" ".join(shuffled.sample(words.split(), 10)) for _ in range(12)]
        paths[language] = folder / f"{language}.txt"
        paths[language].write_text("\n".join(lines) + "\n", encoding="utf-8")
    return paths


def prune_by_magnitude(model: Path, folder: Path, sparsity: float) -> Path:
    """A pruning of a model that needs no text."""
    options = SparsifyOptions(method="magnitude", sparsity=sparsity, device="cpu")
    sparsify_model(model, folder, options)
    return folder
