"""Scorers that were tried for input pruning, for `litepruner_quality.py --candidates`.

The ones that proved useful are in `vllm_kprune/prompt`. The others are kept here, so that the table
can be reproduced.
"""

import itertools
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import regex

from vllm_kprune.prompt.rarity import Words, find_words
from vllm_kprune.prompt.scorers import Scorer, Tokens, make_scorer

Floats = npt.NDArray[np.float64]
Score = Callable[[Tokens, str | None], Floats]


class Candidate:
    """Makes a scorer of a function of tokens and question."""

    def __init__(self, name: str, score: Score, conditioned: bool = False) -> None:
        self.name, self._score, self.uses_query = name, score, conditioned

    def scores(
        self, tokens: Tokens, *, query: str | None = None, cancelled: object = None
    ) -> npt.NDArray[np.float32]:
        """[tokens] scores."""
        return np.asarray(self._score(tokens, query), dtype=np.float32)


def plain(score: Callable[[Tokens], Floats]) -> Callable[[str], Callable[[Path], Scorer]]:
    """A candidate that reads nothing from the folder."""
    return lambda name: lambda folder: Candidate(name, lambda tokens, query: score(tokens))


def asking(score: Score) -> Callable[[str], Callable[[Path], Scorer]]:
    """A candidate that looks at the question."""
    return lambda name: lambda folder: Candidate(name, score, conditioned=True)


def ranks(values: Floats) -> Floats:
    """Values replaced by their rank, from 0 to 1."""
    return values.argsort(kind="stable").argsort(kind="stable") / max(len(values) - 1, 1)


def jitter(tokens: Tokens, width: float) -> Floats:
    """Small values that break ties evenly over the text."""
    return width * np.random.default_rng(len(tokens.ids)).random(len(tokens.ids))


# Vocabulary


def vocabulary_rank(folder: Path) -> Scorer:
    """The token ids themselves, which the first measurement called `rarity`."""
    return Candidate("rank", lambda tokens, query: np.array(tokens.ids, dtype=float))


def merge_rank(folder: Path) -> Scorer:
    """The rank of the merge that makes a token; for a character, of the first merge it is in."""
    model = json.loads((folder / "tokenizer.json").read_text())["model"]
    merges = [m.split(" ") if isinstance(m, str) else m for m in model["merges"]]
    vocab = model["vocab"]
    first = np.full(max(vocab.values()) + 1, float(len(merges)))
    for rank in range(len(merges) - 1, -1, -1):
        left, right = merges[rank]
        for part in (left, right):
            if len(part) == 1:
                first[vocab[part]] = rank
    for rank in range(len(merges) - 1, -1, -1):
        made = vocab.get("".join(merges[rank]))
        if made is not None:
            first[made] = rank
    return Candidate(
        "merge-rank",
        lambda tokens, query: first[np.minimum(tokens.ids, len(first) - 1)] + jitter(tokens, 0.5),
    )


def embedding_norm(sign: float) -> Callable[[Path], Scorer]:
    """The length of a token's embedding in the ranker."""

    def make(folder: Path) -> Scorer:
        from safetensors import safe_open

        with safe_open(folder / "model.safetensors", "pt") as weights:
            names = list(weights.keys())
            name = next(name for name in names if name.endswith("embed_tokens.weight"))
            norms = weights.get_tensor(name).float().norm(dim=1).numpy()
        return Candidate("norm", lambda tokens, query: sign * norms[list(tokens.ids)])

    return make


# Words


def changed(
    mark: float = 3.0,
    blank: float | None = 5.0,
    end: float | None = None,
    repeat: float = 0.0,
    near: float = 0.0,
    capital: float = 0.0,
    tie: float = 0.0,
    most: float = 99.0,
    density: float = 0.0,
) -> Callable[[Tokens], Floats]:
    """Self-information of words, with variations.

    `mark`, `blank` and `end` (of a sentence) are the nats of these. `repeat` is the share of log(1
    + earlier mentions) that is subtracted. `near` is the share of the neighbours' mean. `capital`
    is added for a capital inside a sentence. `tie` is the noise, in nats, and `most` the largest
    score. `density` is the share of log(tokens of the word) that is subtracted.
    """

    def score(tokens: Tokens) -> Floats:
        words = find_words(tokens.text)
        nats = words.nats.copy()
        seen: Counter[str] = Counter()
        for n, key in enumerate(keys_of(words, tokens.text)):
            if regex.match(r"\p{P}", key):
                nats[n] = end if end is not None and key in ".!?。！？।" else mark
            elif repeat and seen[key]:
                nats[n] -= repeat * np.log1p(seen[key])
            if capital and tokens.text[words.starts[n]].isupper():
                nats[n] += capital
            seen[key] += 1
        nats = np.minimum(nats, most)
        first, last = words.numbers(tokens)
        if density:
            sizes = np.bincount(first[first >= 0], minlength=len(nats))
            nats -= density * np.log(np.maximum(sizes, 1))
        table = np.append(nats, 5.0 if blank is None else blank)
        values = np.maximum(table[first], table[last])
        if blank is None:  # the same as the next token
            for at in np.flatnonzero(first < 0)[::-1]:
                values[at] = values[at + 1] if at + 1 < len(values) else 5.0
        if near:
            padded = np.pad(np.minimum(values, 12), 1, mode="edge")
            values = values + near * (padded[:-2] + padded[2:]) / 2
        return values + (jitter(tokens, tie) if tie else 0.0)

    return score


def keys_of(words: Words, text: str) -> list[str]:
    """The words in lower case."""
    return [text[a:b].lower() for a, b in zip(words.starts, words.ends, strict=True)]


def overlap(weight: float, spread: float) -> Score:
    """Words plus, for the sentence, the information of question words that it contains.

    `spread`: share of the boost that a sentence's neighbours have.
    """
    base = changed()

    def score(tokens: Tokens, query: str | None) -> Floats:
        values = base(tokens)
        if not query:
            return values
        return values + weight * sentence_relevance(tokens, query, spread)

    return score


_SENTENCE = regex.compile(r"(?<=[.!?।]\s)|(?<=[。！？\n])")


def sentence_relevance(tokens: Tokens, query: str, spread: float) -> Floats:
    """[tokens] share of the question's information, 0 to 1, that is in the token's sentence."""
    asked: dict[str, float] = {}
    words = find_words(query)
    for key, nats in zip(keys_of(words, query), words.nats, strict=True):
        asked[key[:5] if len(key) > 5 else key] = max(0.0, nats - 6.0)
    total = sum(asked.values()) or 1.0
    bounds = [0, *(m.start() for m in _SENTENCE.finditer(tokens.text)), len(tokens.text)]
    held = []
    for start, end in itertools.pairwise(bounds):
        inside = find_words(tokens.text[start:end])
        keys = {key[:5] if len(key) > 5 else key for key in keys_of(inside, tokens.text[start:end])}
        held.append(sum(nats for key, nats in asked.items() if key in keys) / total)
    held_array = np.array(held)
    padded = np.pad(held_array, 1)
    held_array = np.maximum(held_array, spread * np.maximum(padded[:-2], padded[2:]))
    begins = np.array([(a + b) // 2 for a, b in tokens.offsets])
    at = np.searchsorted(bounds, begins, side="right") - 1
    return held_array[np.clip(at, 0, len(held) - 1)]


# Attention


def attention_with(combine: Callable[[Floats, Tokens], Floats]) -> Callable[[Path], Scorer]:
    """A function of the log of the attention received in the first layer."""

    def make(folder: Path) -> Scorer:
        attention = make_scorer("attention", folder)

        def score(tokens: Tokens, query: str | None) -> Floats:
            return combine(np.log(attention.scores(tokens).astype(float) + 1e-12), tokens)

        return Candidate("attention", score)

    return make


def residual(values: Floats, tokens: Tokens) -> Floats:
    """The residual of a linear fit to word information; the first token is a sink."""
    nats = changed()(tokens)
    design = np.stack([np.ones_like(nats), nats, nats**2, np.arange(len(nats)) == 0], axis=1)
    return values - design @ np.linalg.lstsq(design, values, rcond=None)[0]


def asked_attention(weight: float) -> Callable[[Path], Scorer]:
    """Attention from the question's tokens, and rank-averaged with word information."""

    def make(folder: Path) -> Scorer:
        from vllm_kprune.prompt.ranker import FirstLayer

        layer = FirstLayer.from_pretrained(folder)
        base = changed()

        def score(tokens: Tokens, query: str | None) -> Floats:
            if not query:
                return base(tokens)
            asked = layer.tokenizer.encode("\n" + query, add_special_tokens=False).ids
            n = len(tokens.ids)
            ids = [*tokens.ids, *asked]
            [got] = layer.received_attention([ids], queries=[range(n, len(ids))])
            values = np.log(got[:n].astype(float) + 1e-12)
            if weight >= 1:
                return values
            return (1 - weight) * ranks(base(tokens)) + weight * ranks(values)

        return Candidate("asked", score, conditioned=True)

    return make


_PLAIN = {
    "words": changed(),
    "words-mark3": changed(mark=3.0),
    "words-mark9": changed(mark=9.0),
    "words-end9": changed(end=9.0),
    "words-blank": changed(blank=None),
    "words-repeat": changed(repeat=1.0),
    "words-repeat3": changed(repeat=3.0),
    "words-m3r2": changed(mark=3.0, repeat=2.0),
    "words-m3r2-end": changed(mark=3.0, repeat=2.0, end=7.0),
    "words-near": changed(near=0.15),
    "words-near3": changed(near=0.3),
    "words-far": changed(near=-0.15),
    "words-capital": changed(capital=2.0),
    "words-tie1": changed(tie=1.0),
    "words-tie3": changed(tie=3.0),
    "words-density": changed(density=1.0),
}
CANDIDATES: dict[str, Callable[[Path], Scorer]] = {
    **{name: plain(score)(name) for name, score in _PLAIN.items()},
    "rank": vocabulary_rank,
    "merge-rank": merge_rank,
    "norm": embedding_norm(1.0),
    "norm-low": embedding_norm(-1.0),
    "inverse-attention": attention_with(lambda values, tokens: -values),
    "attention-residual": attention_with(residual),
    "attention-residual-low": attention_with(lambda v, t: -residual(v, t)),
    "words+attention": attention_with(
        lambda v, t: 0.7 * ranks(changed()(t)) + 0.3 * ranks(residual(v, t))
    ),
    "words+inverse": attention_with(lambda v, t: 0.6 * ranks(changed()(t)) + 0.4 * ranks(-v)),
    "overlap5": asking(overlap(5.0, 0.0))("overlap5"),
    "overlap10": asking(overlap(10.0, 0.3))("overlap10"),
    "overlap20": asking(overlap(20.0, 0.3))("overlap20"),
    "asked": asked_attention(1.0),
    "asked+words": asked_attention(0.4),
}
