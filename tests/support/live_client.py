"""Talking to live servers in the tests: completions on token ids, and the ids of their answers."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from openai import OpenAI

from vllm_kprune.demo.servers import VllmServer


@dataclass(frozen=True)
class Step:
    """One generated token, and the two best logits at its place: {token id: logit}."""

    token: int
    best: dict[int, float]

    def is_tie_between(self, one: int, other: int) -> bool:
        """Are both tokens on top, apart by no more than bfloat16 can tell at that size?"""
        if {one, other} != set(self.best):
            return False
        return abs(self.best[one] - self.best[other]) <= bfloat16_step(max(self.best.values()))


def bfloat16_step(value: float) -> float:
    """Distance between neighbouring bfloat16 numbers at `value`: 8 bits of significand."""
    return 2.0 ** (math.floor(math.log2(abs(value))) - 7)


def client(server: VllmServer) -> OpenAI:
    """An OpenAI client for one server."""
    return OpenAI(base_url=server.base_url, api_key="none", timeout=300, max_retries=0)


def model_name(server: VllmServer) -> str:
    """The name that the server gives to its model."""
    with client(server) as api:
        return api.models.list().data[0].id


def complete(server: VllmServer, prompt: Any, **options: Any) -> Any:
    """A completion; greedy and of 16 tokens unless told otherwise."""
    known = {key: options.pop(key) for key in _OPENAI_OPTIONS & options.keys()}
    request = {"model": server.model, "max_tokens": 16, "temperature": 0, **known}
    with client(server) as api:
        return api.completions.create(prompt=prompt, extra_body=options, **request)


def greedy_steps(
    server: VllmServer, prompt_ids: Sequence[int], tokens: int, allowed: Sequence[int] | None = None
) -> list[Step]:
    """Greedy continuation of `prompt_ids`, with the two best logits of every step.

    The server must run with `--logprobs-mode processed_logits`.
    """
    options: dict[str, Any] = {"ignore_eos": True, "return_tokens_as_token_ids": True}
    if allowed is not None:
        options["allowed_token_ids"] = list(allowed)
    answer = complete(server, list(prompt_ids), max_tokens=tokens, logprobs=2, **options)
    logprobs = answer.choices[0].logprobs
    return [
        Step(_id(token), {_id(name): value for name, value in best.items()})
        for token, best in zip(logprobs.tokens, logprobs.top_logprobs, strict=True)
    ]


def _id(name: str) -> int:
    return int(name.removeprefix("token_id:"))


_OPENAI_OPTIONS = {"max_tokens", "temperature", "logprobs", "n", "stop", "seed", "logit_bias",
                   "stream", "stream_options", "model"}  # fmt: skip
