"""BLEU and chrF++ of many resampled corpora at once, from sums of per-segment statistics.

sacrebleu supplies the statistics and is the reference for both scores, which a test compares. Its
own functions score one corpus per call, and an interval needs ten thousand.
"""

import numpy as np

from vllm_kprune.compare.measurements import Floats

__all__ = ["bleu", "chrf"]

# beta = 2, sacrebleu's default: recall weighs more than precision.
_BETA_SQUARED = 4.0


def bleu(sums: Floats) -> Floats:
    """Corpus BLEU, 0 to 100, of each row of `sums` [corpora, 10].

    Columns: length, reference length, matching 1- to 4-grams, all 1- to 4-grams. The smoothing is
    sacrebleu's default for a corpus (`exp`: Chen and Cherry 2014, method 3).
    """
    length, reference = sums[:, 0], sums[:, 1]
    correct, total = sums[:, 2:6], sums[:, 6:10]
    missed = correct == 0
    # The first order without a match counts as 1/2 of a match, the next one as 1/4, and so on.
    # Matches [3, 0, 0, 0] are counted as [3, 1/2, 1/4, 1/8].
    halvings = 2.0 ** np.cumsum(missed, axis=1)
    counted = np.where(missed, 1 / halvings, correct)
    with np.errstate(divide="ignore", invalid="ignore"):
        # A corpus too short for any 4-gram has a precision of 0, and therefore a score of 0.
        precisions = np.where(total > 0, counted / total, 0.0)
        log_mean = np.log(precisions).mean(axis=1)
        brevity = np.where(length < reference, np.exp(1 - reference / length), 1.0)
    scores: Floats = 100 * brevity * np.exp(log_mean)
    return np.where(correct.any(axis=1), scores, 0.0)


def chrf(sums: Floats) -> Floats:
    """Corpus chrF++, 0 to 100, of each row of `sums` [corpora, 3 x orders].

    Columns, for each order: n-grams of the answer, of the reference, and common to both. Precision
    and recall are averaged over the orders that both sides have, then combined with beta = 2
    (Popović 2017).
    """
    answer, reference, both = sums[:, 0::3], sums[:, 1::3], sums[:, 2::3]
    used = (answer > 0) & (reference > 0)
    orders = np.maximum(used.sum(axis=1), 1)
    precision = (np.where(used, both, 0) / np.where(used, answer, 1)).sum(axis=1) / orders
    recall = (np.where(used, both, 0) / np.where(used, reference, 1)).sum(axis=1) / orders
    denominator = _BETA_SQUARED * precision + recall
    product = (1 + _BETA_SQUARED) * precision * recall
    scores: Floats = 100 * product / np.where(denominator > 0, denominator, 1)
    return scores
