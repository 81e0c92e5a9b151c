"""How alike two rankers are: the scores they give the same tokens, and the texts they keep.

`similarity` has the figures of tables 6, 7 and 11-16 of the LitePruner paper, and more. By RAD and
cosine alone, any scores that are positive and sum to 1 look alike. `bleu` is table 8.
benchmarks/litepruner.py prints both and explains how to read them.
"""

from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vllm_kprune.errors import KPruneError
from vllm_kprune.prompt.budget import PruneOptions
from vllm_kprune.prompt.ranker import FirstLayer
from vllm_kprune.prompt.text_pruner import TextPruner
from vllm_kprune.tokenizer.encoder import load_encoder

__all__ = ["bleu", "cosine", "dropped_alike", "rad", "similarity"]

LAYERS = (0, 1, 2)
Scores = NDArray[np.float32]
Rows = list[dict[str, Any]]


def rad(a: Scores, b: Scores) -> float:
    """Relative attention difference (formula 1)."""
    return float(np.abs(a - b).mean())


def cosine(a: Scores, b: Scores) -> float:
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


def dropped_alike(a: Scores, b: Scores, keep: float = 0.7) -> float:
    """The share of the tokens dropped by `a` that `b` drops too."""
    count = len(a) - int(np.ceil(keep * len(a)))
    drops = [set(np.argsort(scores, kind="stable")[:count].tolist()) for scores in (a, b)]
    return len(drops[0] & drops[1]) / max(count, 1)


def compare(a: Scores, b: Scores, rng: np.random.Generator) -> dict[str, float]:
    """How much two layers agree on one prompt."""
    shuffled = rng.permutation(b)
    return {
        "tokens": len(a),
        "RAD": rad(a, b),
        "n x RAD": len(a) * rad(a, b),
        "n x RAD shuffled": len(a) * rad(a, shuffled),
        "cosine": cosine(a, b),
        "cosine shuffled": cosine(a, shuffled),
        "dropped alike": dropped_alike(a, b),
    }


def encode_alike(
    folders: Sequence[Path], prompts: Sequence[str], special_tokens: bool
) -> list[list[int]]:
    """Token ids of the prompts. Both models must give the same: RAD compares token by token."""
    ids = []
    for folder in folders:
        tokenizer = load_encoder(folder)
        ids.append([tokenizer.encode(p, add_special_tokens=special_tokens).ids for p in prompts])
    if any(other != ids[0] for other in ids):
        raise KPruneError(
            f"{folders[0]} and {folders[-1]} have different tokenizers, so their scores cannot be "
            "compared token by token; name two models of a family, or use 'bleu'"
        )
    return ids[0]


def similarity(
    ranker: Path, other: Path, prompts: Sequence[str], *, bos: bool = True, causal: bool = False
) -> Rows:
    """Compare every layer of `ranker` (first number) with every layer of `other`; prompt means.

    Raises:
        KPruneError: the two models cut a prompt into different tokens.
    """
    from transformers.utils import logging

    logging.disable_progress_bar()
    ids = encode_alike([ranker, other], prompts, bos)
    scores = {}
    for folder, layer in product(dict.fromkeys([ranker, other]), LAYERS):
        loaded = FirstLayer.from_pretrained(folder, layer=layer)
        scores[folder, layer] = loaded.received_attention(ids, causal=causal)
    rng = np.random.default_rng(0)
    rows = []
    for a, b in product(LAYERS, LAYERS):
        pairs = zip(scores[ranker, a], scores[other, b], strict=True)
        rows.append({"layers": f"{a + 1}, {b + 1}", **_means([compare(*p, rng) for p in pairs])})
    return rows


def _means(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}


def bleu(
    folders: Sequence[Path], prompts: Sequence[str], rates: Sequence[float], scorer: str, cut: str
) -> Rows:
    """Mean sentence BLEU of the text that the second ranker keeps against that of the first.

    `cut` is sacrebleu's tokenizer: "13a" where words have spaces, else "zh" or "char".
    """
    try:
        from sacrebleu.metrics import BLEU
    except ImportError:
        raise KPruneError("BLEU needs sacrebleu: pip install sacrebleu") from None
    metric = BLEU(tokenize=cut, effective_order=True)  # the latter for single sentences
    pairs = {
        scorer: [TextPruner.from_pretrained(f, scorer=scorer) for f in folders],
        "random": [
            TextPruner.from_pretrained(f, scorer="random", seed=n) for n, f in enumerate(folders)
        ],
    }
    rows = []
    for keep in rates:
        row: dict[str, Any] = {"keep": keep}
        for name, pruners in pairs.items():
            kept = [[p.prune(text, PruneOptions(keep)).text for text in prompts] for p in pruners]
            found = [metric.sentence_score(b, [a]).score for a, b in zip(*kept, strict=True)]
            row[name] = float(np.mean(found))
        rows.append(row)
    return rows
