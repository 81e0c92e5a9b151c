"""Endpoints without a network: a function from request to answer stands for the server."""

import asyncio
import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vllm_kprune.compare.endpoint.messages import Abilities, Answer, Endpoint, Request
from vllm_kprune.compare.journal import Journal
from vllm_kprune.compare.run import CompareOptions, Context

Reply = Callable[[Request], Answer]


class FakeClient:
    """Answers by `reply`; `paths` are what GET finds; `asked` is everything that was asked."""

    def __init__(
        self,
        name: str,
        reply: Reply,
        *,
        paths: Mapping[str, Any] | None = None,
        missing: Mapping[str, str] | None = None,
        url: str = "http://127.0.0.1:1/v1",
    ) -> None:
        self.endpoint = Endpoint(name, url, "model")
        self.abilities = Abilities(missing or {})
        self.asked: list[Request] = []
        self._reply, self._paths = reply, paths or {}
        self.of_batches: Callable[[int], FakeClient] | None = None

    async def ask(self, request: Request) -> Answer:
        self.asked.append(request)
        return self._reply(request)

    def again(self, *, concurrency: int) -> "FakeClient":
        return self.of_batches(concurrency) if self.of_batches else self

    async def get(self, path: str) -> Any:
        return self._paths.get(path)

    async def close(self) -> None:
        pass


@contextmanager
def comparing(
    folder: Path, original: FakeClient, pruned: FakeClient, **options: Any
) -> Iterator[Context]:
    """A context as a run has it, with a real journal in the folder."""
    with asyncio.Runner() as runner, Journal(folder, {}) as journal:
        yield Context((original, pruned), journal, CompareOptions(**options), runner)


def scoring(request: Request, *, quality: float = 0.0) -> Answer:
    """An endpoint whose tokens are characters: log-probabilities that depend on the text alone."""
    text = request.prompt or request.messages[-1]["content"]
    logprobs = [None, *(-_chance(text[:n]) + quality for n in range(2, len(text) + 1))]
    return Answer(
        text=" 1",
        prompt_tokens=len(text),
        completion_tokens=1,
        prompt_logprobs=tuple(logprobs) if request.prompt_logprobs is not None else None,
        e2e_ms=1.0,
    )


def _chance(text: str) -> float:
    return hashlib.sha256(text.encode()).digest()[0] / 64
