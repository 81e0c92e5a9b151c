"""sacrebleu's BLEU and chrF++ as counts that can be resampled; COMET where it is installed.

A corpus score is not a mean over sentences but a function of counts summed over them. The features
of a sentence are therefore its counts, and `statistics/corpus_scores.py` computes the score of each
resample. The counts are sacrebleu's own: for BLEU from its public sentence score, for chrF from the
methods that every metric of sacrebleu implements. Tests compare both with the public corpus scores.

BLEU needs words. sacrebleu's `ko-mecab` splits Korean into words where it is installed; otherwise
Korean is split into characters. Scores are then higher and not comparable with published ones, but
both sides are treated alike. sacrebleu's `flores` tokenizers need a download and are not used.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np

from vllm_kprune.compare.measurements import Floats
from vllm_kprune.errors import KPruneError

__all__ = ["bleu_features", "chrf_features", "comet_features", "sentence_chrf", "signatures"]

_TOKENIZERS = {"zh": "zh", "ja": "char", "th": "char"}
_COMET_MODEL = "Unbabel/wmt22-comet-da"


def bleu_features(answers: Sequence[str], references: Sequence[str], language: str) -> Floats:
    """[sentences, 10]: length, reference length, matches and n-grams of orders 1 to 4."""
    metric = _bleu(language, sentence=True)
    rows = []
    for answer, reference in zip(answers, references, strict=True):
        score = metric.sentence_score(answer, [reference])
        rows.append([score.sys_len, score.ref_len, *score.counts, *score.totals])
    return np.array(rows, np.float64).reshape(len(rows), 10)


def chrf_features(answers: Sequence[str], references: Sequence[str]) -> Floats:
    """[sentences, 24]: n-grams of the answer, of the reference, and common to both.

    These three repeat for the character orders 1 to 6 and the word orders 1 and 2.
    """
    metric = _chrf()
    rows = []
    for answer, reference in zip(answers, references, strict=True):
        known = metric._extract_reference_info([metric._preprocess_segment(reference)])
        text = metric._preprocess_segment(answer)
        rows.append(metric._compute_segment_statistics(text, known))
    return np.array(rows, np.float64).reshape(len(rows), 24)


def sentence_chrf(answer: str, reference: str) -> float:
    """chrF++ of one sentence, 0 to 100, to sort and label examples."""
    return float(_chrf().sentence_score(answer, [reference]).score)


def signatures(language: str) -> tuple[str, str]:
    """sacrebleu's signatures of BLEU and chrF++ as used for a target language."""
    found = []
    for metric in (_bleu(language, sentence=False), _chrf()):
        metric.corpus_score(["x"], [["x"]])  # the signature includes the number of references
        found.append(str(metric.get_signature()))
    return found[0], found[1]


def comet_features(
    sources: Sequence[str], answers: Sequence[str], references: Sequence[str], model: str | None
) -> Floats:
    """[sentences, 1]: COMET scores, computed on the CPU; `KPruneError` if COMET is unavailable."""
    scorer = _comet(model or _COMET_MODEL)
    rows = zip(sources, answers, references, strict=True)
    data = [{"src": source, "mt": answer, "ref": reference} for source, answer, reference in rows]
    scores = scorer.predict(data, batch_size=8, gpus=0, progress_bar=False).scores
    return np.array(scores, np.float64).reshape(len(data), 1)


@cache
def _bleu(language: str, sentence: bool) -> Any:
    """sacrebleu expects `effective_order` for single sentences; the counts are the same."""
    from sacrebleu import BLEU

    if language == "ko":
        try:
            return BLEU(tokenize="ko-mecab", effective_order=sentence)
        except RuntimeError:  # sacrebleu[ko] is not installed
            return BLEU(tokenize="char", effective_order=sentence)
    # 13a is sacrebleu's default, for languages with spaces between words.
    return BLEU(tokenize=_TOKENIZERS.get(language, "13a"), effective_order=sentence)


@cache
def _chrf() -> Any:
    from sacrebleu import CHRF

    # Two word orders make chrF into chrF++.
    return CHRF(word_order=2)


@cache
def _comet(model: str) -> Any:
    try:
        from comet import download_model, load_from_checkpoint
    except ModuleNotFoundError:
        raise KPruneError("unbabel-comet is not installed; pip install unbabel-comet") from None
    try:
        return load_from_checkpoint(download_model(model))
    except (OSError, KeyError, ValueError, RuntimeError) as error:
        raise KPruneError(f"COMET's model {model} could not be loaded: {error}") from None
