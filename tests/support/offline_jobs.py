"""Generates with vLLM's offline engine for several models, importing vLLM only once.

A script for `forks.ask`. Each job (`{"model": FOLDER, "options": {...}, "prompts": [[1, 2], ...],
"allowed": [...]}`) runs in a fork, which holds the engine. All prompts of a job are one batch, so
that two jobs with as many prompts of the same lengths compute the same shapes. `each` has more
sampling parameters for each prompt. An answer has the
greedy `ids`, the `best` logits of each step where `logprobs` asks for them, how many `drafts` there
were and how many were `accepted`, or the `error` of a job that failed. `adapted` has an answer for
each of the job's LoRA `adapters`: the same engine is asked again.
"""

import importlib
import os
import sys
import traceback
from collections.abc import Callable
from functools import partial
from typing import Any

from support.forks import Ended, answer_jobs

# Read when vLLM is imported: the engine, and its one worker, in the process that asks.
os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
BLOCKS = 96
# What an engine imports when it is made, and would import again in every fork.
IMPORTED = (
    "compressed_tensors.compressors",
    "vllm",
    "vllm.entrypoints.llm",
    "vllm.model_executor.layers.quantization.online",
    "vllm.v1.attention.backends.cpu_attn",
    "vllm.v1.core.sched.scheduler",
    "vllm.v1.worker.cpu_worker",
)


def _answer(job: dict[str, Any]) -> dict[str, Any]:
    return _tried(lambda: _generate(**job))


def _tried(run: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    try:
        return run()
    except BaseException as error:
        traceback.print_exc()
        return {"error": f"{type(error).__name__}: {error}"}


def _generate(
    model: str,
    prompts: list[list[int]],
    tokens: int = 16,
    options: dict[str, Any] | None = None,
    allowed: list[int] | None = None,
    adapters: tuple[str, ...] = (),
    environment: dict[str, str] | None = None,
    logprobs: int | None = None,
    each: list[dict[str, Any]] | None = None,
) -> dict[str, Any]:
    os.environ.update(environment or {})
    from vllm import LLM, SamplingParams
    from vllm.lora.request import LoRARequest

    defaults = {"skip_tokenizer_init": True, "enforce_eager": True, "max_model_len": 256}
    # By default the cache has a gigabyte, which is filled with zeros at every start.
    defaults |= {"dtype": "float32", "num_gpu_blocks_override": BLOCKS}
    engine = LLM(model=model, **{**defaults, **(options or {})})
    params = [
        SamplingParams(
            **{
                "temperature": 0,
                "max_tokens": tokens,
                "ignore_eos": True,
                "detokenize": False,
                "allowed_token_ids": allowed,
                "logprobs": logprobs,
                **more,
            }
        )
        for more in each or [{}] * len(prompts)
    ]

    def ask(adapter: LoRARequest | None = None) -> dict[str, Any]:
        asked = [{"prompt_token_ids": ids} for ids in prompts]
        outputs = engine.generate(asked, params, lora_request=adapter)
        answers = [output.outputs[0] for output in outputs]
        return {
            "ids": [list(answer.token_ids) for answer in answers],
            "best": [_values(answer.logprobs) for answer in answers] if logprobs else None,
        }

    loras = [LoRARequest(f"adapter {n}", n, path) for n, path in enumerate(adapters, start=1)]
    answer = {**ask(), **_draft_counts(engine, options or {})}
    return {**answer, "adapted": [_tried(partial(ask, lora)) for lora in loras]}


def _draft_counts(engine: Any, options: dict[str, Any]) -> dict[str, int]:
    if options.get("disable_log_stats", True):  # vLLM counts nothing then
        return {}
    names = {"drafts": "num_draft_tokens", "accepted": "num_accepted_tokens"}
    values = {metric.name: getattr(metric, "value", 0) for metric in engine.get_metrics()}
    return {short: values[f"vllm:spec_decode_{name}"] for short, name in names.items()}


def _told(ended: Ended) -> Any:
    sys.stderr.write(ended.text)
    return ended.result or {"error": f"ended with status {ended.status}"}


def _values(steps: Any) -> list[dict[int, float]]:
    return [{token: one.logprob for token, one in step.items()} for step in steps]


if __name__ == "__main__":
    for name in IMPORTED:
        importlib.import_module(name)
    answer_jobs(_answer, _told)
