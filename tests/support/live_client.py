"""Requests to live servers: completions of texts and token ids, with the ids of the answers."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from openai import OpenAI

from vllm_kprune.demo.servers import VllmServer

# Of a float32 matrix product, as a share of its largest value (test_same_model has the same).
FLOAT32_ERROR = 1e-5


@dataclass(frozen=True)
class Step:
    """One generated token, and the two best logits at its place: {token id: logit}."""

    token: int
    best: dict[int, float]

    @property
    def highest(self) -> float:
        """The best logit."""
        return max(self.best.values())

    def gap_between(self, one: int, other: int) -> float:
        """How far apart the logits of both tokens are; infinite unless they are the two best."""
        if {one, other} != set(self.best):
            return math.inf
        return abs(self.best[one] - self.best[other])


def float32_error(value: float) -> float:
    """How far two float32 matrix products of different width may differ at `value`."""
    return FLOAT32_ERROR * abs(value)


def bfloat16_step(value: float) -> float:
    """Distance between neighbouring bfloat16 numbers at `value`: 8 bits of significand."""
    return 2.0 ** (math.floor(math.log2(abs(value))) - 7)


def client(server: VllmServer) -> OpenAI:
    """An OpenAI client for one server."""
    return OpenAI(base_url=server.base_url, api_key="none", timeout=900, max_retries=0)


def model_name(server: VllmServer) -> str:
    """The name under which the server offers its model."""
    with client(server) as api:
        return api.models.list().data[0].id


def complete(server: VllmServer, prompt: Any, **options: Any) -> Any:
    """A completion; by default greedy and 16 tokens long."""
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
    (steps,) = greedy_batch(server, [prompt_ids], tokens, allowed)
    return steps


def greedy_batch(
    server: VllmServer,
    prompts: Sequence[Sequence[int]],
    tokens: int,
    allowed: Sequence[int] | None = None,
) -> list[list[Step]]:
    """The same for several prompts, which the server computes together."""
    options: dict[str, Any] = {"ignore_eos": True, "return_tokens_as_token_ids": True}
    if allowed is not None:
        options["allowed_token_ids"] = list(allowed)
    asked = list(map(list, prompts))
    answer = complete(server, asked, max_tokens=tokens, logprobs=2, **options)
    return [_steps(choice.logprobs) for choice in answer.choices]


def _steps(logprobs: Any) -> list[Step]:
    return [
        Step(_id(token), {_id(name): value for name, value in best.items()})
        for token, best in zip(logprobs.tokens, logprobs.top_logprobs, strict=True)
    ]


def _id(name: str) -> int:
    return int(name.removeprefix("token_id:"))


_OPENAI_OPTIONS = {"max_tokens", "temperature", "logprobs", "n", "stop", "seed", "logit_bias",
                   "stream", "stream_options", "model"}  # fmt: skip
