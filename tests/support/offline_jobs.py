"""Generates with vLLM's offline engine for several models, importing vLLM only once.

    python offline_jobs.py JOBS.json

Each job (`{"model": FOLDER, "options": {...}, "prompts": [[id, ...], ...], "allowed": [...]}`) runs
in a fork, which holds the engine. All prompts of a job are one batch, so that two jobs with as many
prompts of the same lengths compute the same shapes. `each` has more sampling parameters for each
prompt. The answers to all jobs are printed as one line
of JSON: the greedy `ids`, the `best` logits of each step where `logprobs` asks for them, how many
`drafts` there were and how many were `accepted`, or the `error` of a job that failed.
"""

import importlib
import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any

from support.forks import run_forked, tell

# Read when vLLM is imported: the engine, and its one worker, in the process that asks.
os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"


def _answer(job: dict[str, Any]) -> dict[str, Any]:
    try:
        return _generate(**job)
    except BaseException as error:
        traceback.print_exc()
        return {"error": f"{type(error).__name__}: {error}"}


def _generate(
    model: str,
    prompts: list[list[int]],
    tokens: int = 16,
    options: dict[str, Any] | None = None,
    allowed: list[int] | None = None,
    lora: str | None = None,
    environment: dict[str, str] | None = None,
    logprobs: int | None = None,
    each: list[dict[str, Any]] | None = None,
) -> dict[str, Any]:
    os.environ.update(environment or {})
    from vllm import LLM, SamplingParams
    from vllm.lora.request import LoRARequest

    defaults = {"skip_tokenizer_init": True, "enforce_eager": True, "max_model_len": 256}
    engine = LLM(model=model, **{**defaults, "dtype": "float32", **(options or {})})
    outputs = engine.generate(
        [{"prompt_token_ids": ids} for ids in prompts],
        [
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
        ],
        lora_request=LoRARequest("adapter", 1, lora) if lora else None,
    )
    answers = [output.outputs[0] for output in outputs]
    return {
        **_draft_counts(engine, options or {}),
        "ids": [list(answer.token_ids) for answer in answers],
        "best": [_values(answer.logprobs) for answer in answers] if logprobs else None,
    }


def _draft_counts(engine: Any, options: dict[str, Any]) -> dict[str, int]:
    if options.get("disable_log_stats", True):  # vLLM counts nothing then
        return {}
    names = {"drafts": "num_draft_tokens", "accepted": "num_accepted_tokens"}
    values = {metric.name: getattr(metric, "value", 0) for metric in engine.get_metrics()}
    return {short: values[f"vllm:spec_decode_{name}"] for short, name in names.items()}


def _values(steps: Any) -> list[dict[int, float]]:
    return [{token: one.logprob for token, one in step.items()} for step in steps]


if __name__ == "__main__":
    for name in ("vllm", "vllm.entrypoints.llm", "vllm.v1.worker.cpu_worker"):
        importlib.import_module(name)
    jobs = json.loads(Path(sys.argv[1]).read_text())
    ended = run_forked(_answer, jobs)
    sys.stderr.writelines(one.text for one in ended)
    tell([one.result or {"error": f"ended with status {one.status}"} for one in ended])
