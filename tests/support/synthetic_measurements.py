"""Measurements whose true effect is known, made from a seed."""

import numpy as np

from vllm_kprune.compare.measurements import Floats, Measurement, Metric

SHARE = Metric("share", "Correct answers", "share", "higher", 0.01)
LEAKS = Metric("leaks", "Answers with foreign characters", "share", "lower", 0.01)
LPR = Metric("lpr", "Line pass rate", "share", "higher", 0.01, aggregate="ratio")
LCPR = Metric("lcpr", "Pass rate", "share", "higher", 0.01, aggregate="harmonic")
SPEED = Metric("decode_ratio", "Decode speed", "tokens/s", "higher", 0.02, effect="ratio")
MEDIAN = Metric("e2e_p50", "End to end, median", "ms", "lower", 0.02, "p50", "ratio")
TAIL = Metric("e2e_p95", "End to end, p95", "ms", "lower", 0.02, "p95", "ratio")
SCORE = Metric("score", "Score", "points", "higher", 0.5)
BYTES = Metric("weights", "Weights", "bytes", "lower", 0.01, "exact", "ratio")


def measured(metric: Metric, original: object, pruned: object | None) -> Measurement:
    """Features given as a list of numbers, or of rows, for each side."""
    sides = [_columns(side) for side in (original, pruned) if side is not None]
    items = tuple(f"item {row:05d}" for row in range(len(sides[0])))
    return Measurement(metric, items, sides[0], sides[1] if pruned is not None else None)


def _columns(side: object) -> Floats:
    features = np.asarray(side, dtype=np.float64)
    return features[:, None] if features.ndim == 1 else features


def paired_shares(
    rng: np.random.Generator, items: int, share: float, worse_by: float = 0.0, alike: float = 0.8
) -> tuple[Floats, Floats]:
    """Right (1) or wrong answers; the share `alike` of items has the same answer on both sides."""
    original = (rng.random(items) < share).astype(np.float64)
    fresh = (rng.random(items) < share).astype(np.float64)
    pruned = np.where(rng.random(items) < alike, original, fresh)
    lost = rng.random(items) < worse_by / max(share, 1e-9)
    return original, np.where(lost, 0.0, pruned)


def passes(
    rng: np.random.Generator, items: int, samples: int, share: float, spread: float = 4.0
) -> Floats:
    """Items of several samples: [passed, tried], harder and easier items (beta-binomial)."""
    chance = rng.beta(share * spread, (1 - share) * spread, size=items)
    return np.column_stack([rng.binomial(samples, chance), np.full(items, samples)]).astype(float)


def latencies(rng: np.random.Generator, items: int, slower: float = 1.0) -> tuple[Floats, Floats]:
    """Milliseconds of each request on both sides: lognormal, alike by the request's own length."""
    length = rng.lognormal(6.0, 0.4, items)
    original = length * rng.lognormal(0, 0.08, items)
    return original, slower * length * rng.lognormal(0, 0.08, items)
