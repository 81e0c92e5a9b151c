"""Steps of `gpu.py` that ask `vllm serve`: a mixed load, and time to first token."""

import json
import os
import re
from argparse import Namespace
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import litepruner_ttft
from gpu_answers import POLICIES, PROMPTS, foreign
from gpu_job import Job, has_gpu
from tokenizers import Tokenizer

from vllm_kprune.demo.servers import VllmServer

__all__ = ["http", "ttft"]

_AT_ONCE = 64
_COUNTER = re.compile(r"^kprune_guard_requests_total\{.*\} (\S+)$", re.MULTILINE)


def http(job: Job, part: str) -> dict[str, Any]:
    """Requests with different policies at once; then the plugin's own answers."""
    number = job.some(320)
    asked = [None if n % 5 == 0 else POLICIES[n % len(POLICIES)] for n in range(number)]
    arguments = ["--kprune-languages", POLICIES[0], "--max-model-len", "4096", "--enforce-eager"]
    with _server(job, job.model, arguments) as server:
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            answers = list(pool.map(lambda n: _ask(server, n, asked[n]), range(number)))
        with urlopen(f"{server.url}/metrics", timeout=60) as response:
            metrics = response.read().decode()
        bad_status, _ = _post(server, {"kprune_languages": "xx"})
    wanted = [one or POLICIES[0] for one in asked]
    texts = [
        (one, text)
        for one, (status, text) in zip(wanted, answers, strict=True)
        if status == 200 and one != "off"
    ]
    return {
        "requests": number,
        "at_once": _AT_ONCE,
        "failed": sum(status != 200 for status, _ in answers),
        "guarded": len(texts),
        "foreign": sum(foreign(text, one) for one, text in texts),
        "guarded_requests": sum(one != "off" for one in wanted),
        "counted": sum(int(float(one)) for one in _COUNTER.findall(metrics)),
        "bad_status": bad_status,
        "ready_seconds": server.ready_seconds,
    }


def _ask(server: VllmServer, number: int, languages: str | None) -> tuple[int, str]:
    options = {"kprune_languages": languages} if languages else {}
    prompt = PROMPTS[number % len(PROMPTS)]
    return _post(server, options, prompt=prompt, max_tokens=40, temperature=1.4)


def _post(server: VllmServer, options: dict[str, Any], **body: Any) -> tuple[int, str]:
    given = {"prompt": "a", "model": server.model, **body, "vllm_xargs": options}
    headers = {"Content-Type": "application/json"}
    request = Request(f"{server.base_url}/completions", json.dumps(given).encode(), headers)
    try:
        with urlopen(request, timeout=300) as response:
            return response.status, json.loads(response.read())["choices"][0]["text"]
    except HTTPError as error:
        return error.code, ""


def ttft(job: Job, part: str) -> dict[str, Any]:
    """Milliseconds to the first token, by length and by what prunes the prompt."""
    lengths = _lengths()
    options = Namespace(
        tokens=lengths, keep=0.7, scorers=["rarity", "attention"], rounds=3 if job.is_quick else 7
    )
    tokenizer = Tokenizer.from_file(str(Path(job.tokenizer) / "tokenizer.json"))
    prompts = litepruner_ttft.make_prompts(tokenizer, litepruner_ttft.sentences(), seed=0)
    # The small model ranks: a model that is only a shape has no weights to rank with.
    arguments = ["--load-format", "dummy", "--kprune-input-pruner", str(job.model)]
    arguments += ["--kprune-pruner-cache", "0", "--no-enable-prefix-caching", "--enforce-eager"]
    arguments += ["--max-model-len", str(max(lengths) + 64)]
    with _server(job, job.speed_model, arguments) as server:
        return {"keep": options.keep, "ms": litepruner_ttft.measure(server, options, prompts)}


def _lengths() -> Sequence[int]:
    if not has_gpu():
        return (256, 512)
    return (1000, 4000, 12_000)


def _server(job: Job, model: Path, arguments: Sequence[str]) -> VllmServer:
    memory = ["--gpu-memory-utilization", str(job.memory)] if has_gpu() else []
    return VllmServer(
        model,
        ["--plugin", "kprune", *arguments, *memory],
        # A server has its engine in a process of its own, as users have it.
        environment={"VLLM_ENABLE_V1_MULTIPROCESSING": "1"},
        log=Path(job.work) / "logs" / f"server-{model.name}.log",
        # `gpu.py` ends this process when the step's time is up; the server must end before.
        timeout=float(os.environ.get("KPRUNE_GPU_SECONDS", "600")),
    )
