"""Steps of `gpu.py` that time decode steps: vocabularies, a pruned head, the guard's cost.

A step is what a batch of requests needs for one token each: the time of an answer of N tokens,
less that of one token, by N - 1. Rounds with and without the guard take turns in one engine. The
guard's own time is measured besides, between two events on the device, because it is less than what
rounds differ by.
"""

import statistics
import time
from functools import partial
from typing import Any

from gpu_job import Job, engine, has_gpu
from gpu_models import SHAPES, kept_rows

from vllm_kprune.serving.head.expand import expand, inverse_order

__all__ = ["WAYS_TO_EXPAND", "cost", "decode", "expansion"]

GUARD = {"languages": "ko,en"}
OFF = {"kprune_languages": "off"}
ON = {"kprune_languages": "ko,en"}
BATCHES = (1, 8, 32, 256)
# CUDA graphs of whole decode steps without `torch.compile`: such an engine starts in seconds.
_GRAPHS = {
    "mode": 0,
    "cudagraph_mode": "FULL_DECODE_ONLY",
    "cudagraph_capture_sizes": [1, 2, 4, 8, 16, 32, 64, 128, 256],
}


def decode(job: Job, part: str) -> dict[str, Any]:
    """Milliseconds of a step by batch: of the original, of as many rows as the overlay's, and of
    the original with a pruned head."""
    model = job.pruned_speed_model if part == "pruned" else job.speed_model
    head = {"additional_config": {"kprune": {"head": job.profile}}} if part == "head" else {}
    llm = _engine(job, model, skip_tokenizer_init=True, **head)
    rows = llm.llm_engine.model_config.get_vocab_size()
    times = {batch: {"off": _rounds(llm, batch, job, (None,))[0]} for batch in _batches(job)}
    return {"rows": rows, "ms": times, "predicted": _bytes_of_a_step(job.speed_shape, rows)}


def _bytes_of_a_step(shape: str, rows: int) -> int:
    """What a step reads of the weights, in bytes of bfloat16: all but the embedding."""
    s = SHAPES[shape]
    heads = 2 * s.num_attention_heads + 2 * s.num_key_value_heads
    layer = s.hidden_size * (heads * s.head_dim + 3 * s.intermediate_size)
    return 2 * (layer * s.num_hidden_layers + s.hidden_size * rows)


def _fill_and_copy(logits: Any, inverse: Any, ids: Any) -> Any:
    whole = logits.new_full((len(logits), len(inverse)), float("-inf"))
    whole[:, ids] = logits[:, :-1]
    return whole


def _fill_and_scatter(logits: Any, inverse: Any, ids: Any) -> Any:
    whole = logits.new_full((len(logits), len(inverse)), float("-inf"))
    return whole.scatter_(1, ids.expand(len(logits), -1), logits[:, :-1])


WAYS_TO_EXPAND = {
    "as kprune": lambda logits, inverse, ids: expand(logits, inverse),
    "index_select": lambda logits, inverse, ids: logits.index_select(1, inverse),
    "gather": lambda logits, inverse, ids: logits.gather(1, inverse.expand(len(logits), -1)),
    "fill, index": _fill_and_copy,
    "fill, scatter": _fill_and_scatter,
}


def expansion(job: Job, part: str) -> dict[str, Any]:
    """Milliseconds, by batch, of ways to get logits of the vocabulary from those of kept rows.

    Beside them the products of both heads, for the shape that speed is measured with.
    """
    import torch

    rows = kept_rows(job.overlay)
    width = max(SHAPES[job.speed_shape].rows, rows[-1] + 1)
    hidden_size = SHAPES[job.speed_shape].hidden_size
    device = "cuda" if has_gpu() else "cpu"
    ids = torch.tensor(rows, device=device)
    inverse = inverse_order(ids, width)
    heads = {
        name: torch.randn(n, hidden_size, device=device, dtype=torch.bfloat16)
        for name, n in (("product, whole", width), ("product, kept", len(rows)))
    }
    found: dict[str, Any] = {}
    for batch in _batches(job):
        logits = torch.randn(batch, len(rows) + 1, device=device, dtype=torch.bfloat16)
        logits[:, -1] = -torch.inf
        hidden = torch.randn(batch, hidden_size, device=device, dtype=torch.bfloat16)
        whole = WAYS_TO_EXPAND["index_select"](logits, inverse, ids)
        found[batch] = {}
        for name, way in WAYS_TO_EXPAND.items():
            assert torch.equal(way(logits, inverse, ids), whole), name
            found[batch][name] = _ms(partial(way, logits, inverse, ids))
        for name, head in heads.items():
            found[batch][name] = _ms(partial(torch.matmul, hidden, head.T))
    return {"rows": len(rows), "ms": found}


def _ms(call: Any) -> float:
    """The median of the milliseconds that a call takes, when its inputs are not in the caches."""
    import torch

    spent = []
    flushed = torch.empty(1 << 28 if has_gpu() else 1 << 20, device="cuda" if has_gpu() else "cpu")
    for _ in range(20):
        flushed.zero_()
        if has_gpu():
            first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            first.record()
            call()
            last.record()
            torch.cuda.synchronize()
            spent.append(first.elapsed_time(last))
        else:
            began = time.perf_counter()
            call()
            spent.append((time.perf_counter() - began) * 1e3)
    return statistics.median(spent)


def cost(job: Job, part: str) -> dict[str, Any]:
    """Milliseconds of a step with and without the guard, and those that the guard itself takes."""
    llm = _engine(job, job.speed_model, additional_config={"kprune": GUARD})
    spent = _watch_guard()
    figures: dict[str, Any] = {"ms": {}, "in_guard_ms": {}}
    for batch in _batches(job):
        on, off = _rounds(llm, batch, job, (ON, OFF))
        figures["ms"][batch] = {"on": on, "off": off}
        spent.clear()
        _answer_ms(llm, batch, 32, ON)
        figures["in_guard_ms"][batch] = _per_step(spent)
    return figures


def _engine(job: Job, model: Any, **options: Any) -> Any:
    if has_gpu():
        options |= {"enforce_eager": False, "compilation_config": _GRAPHS}
    return engine(job, model, load_format="dummy", **options)


def _batches(job: Job) -> tuple[int, ...]:
    return BATCHES if has_gpu() else (1, 32)


def _rounds(llm: Any, batch: int, job: Job, ways: tuple[Any, ...]) -> list[list[float]]:
    """Milliseconds of a step in each round, for each of the options that requests may have."""
    tokens, number = (65, 4) if job.is_quick else (129, 7)
    found: list[list[float]] = [[] for _ in ways]
    for way in ways:
        _answer_ms(llm, batch, 8, way)  # shapes that were not seen before
    for n in range(number):
        order = list(enumerate(ways))
        for at, way in order[:: 1 if n % 2 else -1]:
            more = _answer_ms(llm, batch, tokens, way) - _answer_ms(llm, batch, 1, way)
            found[at].append(more / (tokens - 1))
    return found


def _answer_ms(llm: Any, batch: int, tokens: int, extra_args: Any) -> float:
    from vllm import SamplingParams

    params = SamplingParams(
        temperature=0,
        max_tokens=tokens,
        ignore_eos=True,
        detokenize=False,
        extra_args=extra_args,
    )
    prompts = [{"prompt_token_ids": [5 + (n + i) % 90 for i in range(16)]} for n in range(batch)]
    began = time.perf_counter()
    llm.generate(prompts, params, use_tqdm=False)
    return (time.perf_counter() - began) * 1e3


def _watch_guard() -> list[tuple[float, Any, Any]]:
    """A list that gets (seconds on the host, begin, end) of every call of the guard's `apply`.

    Begin and end are events of the device; None without a GPU.
    """
    import torch

    from vllm_kprune.serving.guard.processor import LanguageGuard

    spent: list[tuple[float, Any, Any]] = []
    original = LanguageGuard.apply

    def event() -> Any:
        if not has_gpu():
            return None
        made = torch.cuda.Event(enable_timing=True)
        made.record()
        return made

    def apply(*args: Any) -> Any:
        began, first = time.perf_counter(), event()
        result = original(*args)
        last = event()
        spent.append((time.perf_counter() - began, first, last))
        return result

    LanguageGuard.apply = apply  # type: ignore[method-assign]
    return spent


def _per_step(spent: list[tuple[float, Any, Any]]) -> dict[str, float]:
    """Medians of a step, in milliseconds. Without a GPU the device is the host."""
    import torch

    host = statistics.median(seconds for seconds, _, _ in spent) * 1e3
    if not has_gpu():
        return {"host": host, "device": host}
    torch.cuda.synchronize()
    return {
        "host": host,
        "device": statistics.median(first.elapsed_time(last) for _, first, last in spent),
    }
