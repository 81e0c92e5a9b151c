"""Steps of `gpu.py` that time decode steps: two vocabularies, and the guard's cost.

A step is what a batch of requests needs for one token each: the time of an answer of N tokens,
less that of one token, by N - 1. Rounds with and without the guard take turns in one engine. The
guard's own time is measured besides, between two events on the device, because it is less than what
rounds differ by.
"""

import statistics
import time
from typing import Any

from gpu_job import Job, engine, has_gpu

__all__ = ["cost", "decode"]

GUARD = {"languages": "ko,en"}
OFF = {"kprune_languages": "off"}
ON = {"kprune_languages": "ko,en"}
BATCHES = (1, 32, 256)
# CUDA graphs of whole decode steps without `torch.compile`: such an engine starts in seconds.
_GRAPHS = {
    "mode": 0,
    "cudagraph_mode": "FULL_DECODE_ONLY",
    "cudagraph_capture_sizes": [1, 2, 4, 8, 16, 32, 64, 128, 256],
}


def decode(job: Job, part: str) -> dict[str, Any]:
    """Milliseconds of a step with this many rows, by batch."""
    model = job.speed_model if part == "original" else job.pruned_speed_model
    llm = _engine(job, model, skip_tokenizer_init=True)
    rows = llm.llm_engine.model_config.get_vocab_size()
    times = {batch: {"off": _rounds(llm, batch, job, (None,))[0]} for batch in _batches(job)}
    return {"rows": rows, "ms": times}


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
    return BATCHES if has_gpu() else BATCHES[:2]


def _rounds(llm: Any, batch: int, job: Job, ways: tuple[Any, ...]) -> list[list[float]]:
    """Milliseconds of a step in each round, for each of the options that requests may have."""
    tokens, number = (33, 2) if job.is_quick else (129, 7)
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
