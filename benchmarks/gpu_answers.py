"""Steps of `gpu.py` that look at answers: law 4, the guard, drafts, phases."""

import math
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import gpu_kept
from gpu_job import Job, engine, runner_of
from gpu_models import kept_rows
from tokenizers import Tokenizer

from vllm_kprune.errors import KPruneError
from vllm_kprune.guard.characters import allowed_characters
from vllm_kprune.guard.policy import parse_policy

__all__ = ["POLICIES", "PROMPTS", "compare", "drafted", "foreign", "greedy", "guarded", "thinking"]

PROMPTS = (
    "대한민국의 수도는 서울이다. 오늘은",
    "The quick brown fox jumps over",
    "def add(a, b):\n    return",
    "한국어와 English를 섞어서 쓰는 문장은",
    "1. 첫째,",
    "Once upon a time in Seoul",
)
POLICIES = ("ko,en", "en", "ko", "zh", "off")
# Two logits of a bfloat16 model that differ by less may change places between two engines.
TIE = 0.05
THINK = ("<think>", "</think>")
_REASONING_TOKENS = 24


def greedy(job: Job, part: str) -> dict[str, Any]:
    """Law 4: greedy answers, with the gap between the two best tokens at each place.

    The parts are the original, the overlay ("pruned"), and the original with a pruned head.
    """
    from vllm import SamplingParams

    more: dict[str, Any] = {}
    if part == "original":
        os.environ[gpu_kept.OVERLAY] = str(job.overlay)
        more = {"logits_processors": [gpu_kept.KeptIds]}
    if part == "head":
        more = {"additional_config": {"kprune": {"head": job.profile}}}
    began = time.monotonic()
    llm = engine(job, job.overlay if part == "pruned" else job.model, **more)
    load = time.monotonic() - began
    params = SamplingParams(
        temperature=0, max_tokens=32, logprobs=2, ignore_eos=True, detokenize=False
    )
    # Ids of the pruned model are places in the list of what is kept. Both models read the same
    # tokens: where text needs a token that was dropped, the original would read others.
    ids = kept_rows(job.overlay)
    tokenizer = Tokenizer.from_file(str(job.overlay / "tokenizer.json"))
    texts = [tokenizer.encode(text).ids for text in PROMPTS] * (1 if job.is_quick else 8)
    if part != "pruned":
        texts = [[ids[i] for i in text] for text in texts]
    prompts = [{"prompt_token_ids": text} for text in texts]
    answers = llm.generate(prompts, params, use_tqdm=False)
    return {
        "runner": runner_of(llm),
        "load_seconds": load,
        "answers": [_greedy_answer(one, ids if part == "pruned" else None) for one in answers],
    }


def _greedy_answer(answer: Any, ids: list[int] | None) -> dict[str, Any]:
    (output,) = answer.outputs

    def original(tokens: Iterable[int]) -> list[int]:
        return [ids[i] if ids else i for i in tokens]

    gaps = []
    for found in output.logprobs:
        best, second = sorted((one.logprob for one in found.values()), reverse=True)[:2]
        gaps.append(best - second)
    return {
        "prompt": original(answer.prompt_token_ids),
        "tokens": original(output.token_ids),
        "gaps": gaps,
    }


def compare(original: Mapping[str, Any], pruned: Mapping[str, Any]) -> dict[str, int]:
    """How many answers are the same; a first difference may be a tie of the pruned model's."""
    found = {"same": 0, "ties": 0, "different": 0}
    for one, other in zip(original["answers"], pruned["answers"], strict=True):
        pairs = enumerate(zip(one["tokens"], other["tokens"], strict=True))
        first = next((n for n, (a, b) in pairs if a != b), None)
        if one["prompt"] != other["prompt"]:
            found["different"] += 1
        elif first is None:
            found["same"] += 1
        else:
            found["ties" if other["gaps"][first] < TIE else "different"] += 1
    return found


def guarded(job: Job, part: str) -> dict[str, Any]:
    """Hot answers of requests with different policies, all in one batch."""
    model = job.model if part == "original" else job.overlay
    return _hot_answers(job, model, list(PROMPTS))


def drafted(job: Job, part: str) -> dict[str, Any]:
    """The same with drafts that repeat the prompt, also on a pruned head."""
    head = {"head": job.profile} if part == "head" else {}
    config = {"method": "ngram", "num_speculative_tokens": 3}
    config |= {"prompt_lookup_max": 3, "prompt_lookup_min": 1}
    prompts = [f"{prompt} a b a b a b" for prompt in PROMPTS]
    try:
        return _hot_answers(job, job.model, prompts, head, speculative_config=config)
    # vLLM wraps what a plugin raises while it configures an engine.
    except (KPruneError, ValueError) as error:
        if "V1 model runner" not in str(error):
            raise
        return {"skipped": str(error)}


def _hot_answers(
    job: Job, model: Path, prompts: list[str], more: Mapping[str, Any] = {}, **options: Any
) -> dict[str, Any]:
    from vllm import SamplingParams

    settings = {"kprune": {"languages": POLICIES[0], **more}}
    llm = engine(job, model, additional_config=settings, **options)
    number = job.some(640)
    asked = [POLICIES[n % len(POLICIES)] for n in range(number)]
    params = [
        SamplingParams(
            temperature=1.5,
            max_tokens=64 - (n * 7) % 23,
            ignore_eos=True,
            detokenize=False,
            seed=n if n % 3 == 0 else None,
            # Half of those who want the default ask for nothing.
            extra_args={"kprune_languages": one} if one != POLICIES[0] or n % 2 else None,
        )
        for n, one in enumerate(asked)
    ]
    began = time.monotonic()
    answers = llm.generate(
        [prompts[n % len(prompts)] for n in range(number)], params, use_tqdm=False
    )
    seconds = time.monotonic() - began
    found: dict[str, Any] = {name: dict.fromkeys(POLICIES, 0) for name in ("answers", "foreign")}
    text_of = _decoder(model)
    for one, answer in zip(asked, answers, strict=True):
        found["answers"][one] += 1
        found["foreign"][one] += foreign(text_of(answer.outputs[0].token_ids), one)
    tokens = sum(len(answer.outputs[0].token_ids) for answer in answers)
    return {**found, "runner": runner_of(llm), "tokens_per_second": tokens / seconds}


def foreign(text: str, languages: str) -> bool:
    """Has a text a character that these languages do not allow? `off` is judged as the default.

    A last character that `max_tokens` cut off is none.
    """
    policy = parse_policy({"languages": POLICIES[0] if languages == "off" else languages})
    assert policy is not None
    allowed = allowed_characters(policy)
    return any(not allowed[ord(character)] for character in text.rstrip("\ufffd"))


def _decoder(model: Path) -> Callable[[Sequence[int]], str]:
    """Decodes tokens; without those added to the vocabulary, which are no text of the model's."""
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    added = set(tokenizer.get_added_tokens_decoder())
    return lambda ids: str(tokenizer.decode([i for i in ids if i not in added]))


def thinking(job: Job, part: str) -> dict[str, Any]:
    """Prompts that end inside reasoning; a bias lets it end after some tokens."""
    from vllm import SamplingParams

    tokenizer = Tokenizer.from_file(str(job.model / "tokenizer.json"))
    end = tokenizer.token_to_id(THINK[1])
    if end is None or tokenizer.token_to_id(THINK[0]) is None:
        return {"skipped": f"the tokenizer of {job.tokenizer} has no {' and '.join(THINK)}"}
    guard = {"kprune": {"languages": "ko"}}
    llm = engine(job, job.model, reasoning_parser="qwen3", additional_config=guard)
    # Of a random model all tokens are about as likely as one another.
    bias = math.log(llm.llm_engine.model_config.get_vocab_size() / _REASONING_TOKENS)
    params = SamplingParams(
        temperature=1.0, max_tokens=96, ignore_eos=True, detokenize=False, logit_bias={end: bias}
    )
    number = job.some(256)
    prompts = [f"{PROMPTS[n % len(PROMPTS)]}{THINK[0]}\n" for n in range(number)]
    found = [
        list(one.outputs[0].token_ids) for one in llm.generate(prompts, params, use_tqdm=False)
    ]
    # Where it is sampled again, it is a control token of the answer's.
    parts = [(ids[: ids.index(end)], ids[ids.index(end) :]) for ids in found if end in ids]
    text_of = _decoder(job.model)
    return {
        "requests": number,
        "runner": runner_of(llm),
        "answers": len(parts),
        "foreign_answers": sum(foreign(text_of(after), "ko") for _, after in parts),
        "foreign_reasoning": sum(foreign(text_of(before), "ko") for before, _ in parts),
    }
