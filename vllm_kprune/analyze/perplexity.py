"""Perplexity and bits per character, by language, of a model in memory.

    report = measure_perplexity(model, encoder, {"ko": documents}, length=1024)
    report["ko"].bits_per_character.value       # 1.93
    report["ko"].bits_per_character.interval    # (1.88, 1.98): 95 %, for other text of this kind

With N the negative log-likelihood of all tokens in nats, T their number and C the number of Unicode
characters (code points) of the text:

    perplexity = exp(N / T)                     depends on the tokenizer
    bits per character = N / (C ln 2)           does not: tokenizers can be compared

`windows` says which tokens and characters count (each does once), `ratio` what the intervals are.

The body runs once for a window and the head on a few positions at a time, so that logits over
262,144 tokens take 64 MB and not 1 GB. Not covered: the spread over calibration texts and seeds,
which needs several models; `signal_to_noise` is for that.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

import torch
from tokenizers import Tokenizer
from torch.nn.functional import cross_entropy

from vllm_kprune.analyze.decoder import bare_model, evaluating
from vllm_kprune.analyze.ratio import Ratio, estimate_ratio
from vllm_kprune.analyze.windows import Window, begin_ids, cut_windows
from vllm_kprune.errors import KPruneError
from vllm_kprune.progress import Progress, silent

__all__ = ["Perplexity", "measure_perplexity", "signal_to_noise"]

# Numbers of logits that are in memory at once.
_MOST_LOGITS = 1 << 24
_NATS_PER_BIT = math.log(2)
_LARGEST_EXPONENT = 700.0
_TITLE = "measure perplexity"


@dataclass(frozen=True)
class Perplexity:
    """How well a model predicts the text of one language; `nats` is the loss of all tokens."""

    nats: float
    tokens: int
    characters: int
    windows: int
    perplexity: Ratio
    bits_per_character: Ratio


def measure_perplexity(
    model: Any,
    encoder: Tokenizer,
    texts: Mapping[str, str | Sequence[str]],
    *,
    length: int = 1024,
    stride: int | None = None,
    progress: Progress = silent,
) -> dict[str, Perplexity]:
    """Perplexity of each language's text, which is one document or several.

    `model` is a causal language model of transformers, also one with adapters of peft; its mode
    (train or eval) is the same afterwards. Windows have at most `length` tokens and begin `stride`
    tokens apart; without a stride they do not overlap.

    Raises `KPruneError` for a language without text, and for NaN or infinity.
    """
    model = bare_model(model)
    begin = begin_ids(encoder, model.config)
    windows = {}
    for language, text in texts.items():
        documents = [text] if isinstance(text, str) else text
        windows[language] = cut_windows(encoder, documents, begin, length, stride)
        if not windows[language]:
            raise KPruneError(f"the text of {language} is empty; give some text in this language")
    total, done = sum(map(len, windows.values())), 0
    report = {}
    progress(_TITLE, 0.0)
    with evaluating(model), torch.no_grad():
        for language, cut in windows.items():
            nats = []
            for window in cut:
                nats.append(_window_nats(model, window, language))
                done += 1
                progress(_TITLE, done / total)
            report[language] = _perplexity(cut, nats)
    return report


def signal_to_noise(values: Sequence[float]) -> float | None:
    """Mean over standard deviation (n - 1) of one measure of models that should be alike.

    The models differ only in the calibration sample or the seed. This is the ratio of Madaan et al.
    2024, *Quantifying Variance in Evaluation Benchmarks*; the text of Kurz et al., who report one,
    was not at hand, so theirs may differ. None for fewer than two values, or if all are the same.

    >>> signal_to_noise([10.0, 12.0, 14.0])
    6.0
    """
    spread = stdev(values) if len(values) > 1 else 0.0
    return fmean(values) / spread if spread else None


def _window_nats(model: Any, window: Window, language: str) -> float:
    """Negative log-likelihood of the scored tokens of a window."""
    body, device = model.base_model, model.get_input_embeddings().weight.device
    ids = torch.from_numpy(window.ids).to(device)[None]
    outputs = body(input_ids=ids, use_cache=False)
    first = len(window.ids) - window.scored
    # Position p predicts token p + 1.
    hidden, wanted = outputs.last_hidden_state[:, first - 1 : -1], ids[0, first:]
    step = max(1, _MOST_LOGITS // model.get_output_embeddings().weight.shape[0])
    nats = 0.0
    for start in range(0, window.scored, step):
        part = slice(start, start + step)
        logits = _head(model, body, type(outputs)(last_hidden_state=hidden[:, part]))
        losses = cross_entropy(logits[0].float(), wanted[part].to(logits.device), reduction="none")
        nats += float(losses.sum(dtype=torch.float64))
    if not math.isfinite(nats):
        raise KPruneError(
            f"the model gives NaN or infinity for the text of {language}; it may be damaged, or "
            "its training diverged"
        )
    return nats


def _head(model: Any, body: Any, outputs: Any) -> torch.Tensor:
    """Logits [1, tokens, vocabulary] by the model's own code, which may scale or cap them.

    That code runs the body first, so the body is made to answer with `outputs`.
    """
    # accelerate keeps a wrapped method here.
    before = vars(body).get("forward")
    body.forward = lambda *args, **kwargs: outputs
    try:
        placeholder = torch.zeros(1, 1, dtype=torch.long, device=outputs.last_hidden_state.device)
        logits: torch.Tensor = model(input_ids=placeholder, use_cache=False).logits
    finally:
        del body.forward
        if before is not None:
            body.forward = before
    return logits


def _perplexity(windows: Sequence[Window], nats: Sequence[float]) -> Perplexity:
    tokens = [window.scored for window in windows]
    characters = [window.characters for window in windows]
    bits = [value / _NATS_PER_BIT for value in nats]
    return Perplexity(
        nats=math.fsum(nats),
        tokens=sum(tokens),
        characters=sum(characters),
        windows=len(windows),
        perplexity=_exponential(estimate_ratio(nats, tokens)),
        bits_per_character=estimate_ratio(bits, characters),
    )


def _exponential(loss: Ratio) -> Ratio:
    """exp of an estimate: the interval's ends are moved, the error by the slope (delta method)."""
    low_high = loss.interval and (_exp(loss.interval[0]), _exp(loss.interval[1]))
    value = _exp(loss.value)
    error = None if loss.standard_error is None else value * loss.standard_error
    return Ratio(value, error, low_high)


def _exp(value: float) -> float:
    # A model that diverged may lose more than floats can hold.
    return math.exp(min(value, _LARGEST_EXPONENT))
