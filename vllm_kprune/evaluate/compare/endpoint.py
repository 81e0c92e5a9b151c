"""The two endpoints of a comparison, and a client that neither hangs, floods nor trusts them.

Any OpenAI-compatible server will do: what one cannot do (chat, log-probabilities, token counts,
`/kprune`, `/metrics`) is found out once, before anything is measured, and told as a reason. An
answer is either whole or carries an error; nothing is filled in.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

__all__ = ["Abilities", "Answer", "Client", "Endpoint", "Request"]


@dataclass(frozen=True)
class Endpoint:
    """One side of a comparison: `name` is `original` or `pruned`, `url` ends in `/v1`."""

    name: str
    url: str
    model: str
    api_key: str = field(repr=False)

    @property
    def root(self) -> str:
        """The server without `/v1`, where `/kprune`, `/metrics` and `/health` are."""
        return self.url.removesuffix("/v1")


@dataclass(frozen=True)
class Request:
    """What is asked of both sides alike; `messages` for a chat, `prompt` for a completion.

    `logprobs` is the number of best tokens at each place, `prompt_logprobs` the same for the
    prompt (0: only its own tokens). What an endpoint cannot do is left out of what it is sent.
    `extra` is added to the body as it is.
    """

    kind: Literal["chat", "completion"]
    messages: Sequence[Mapping[str, str]] = ()
    prompt: str = ""
    max_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    n: int = 1
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    stream: bool = False
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Answer:
    """One raw answer. None: the endpoint did not tell. `error`: no answer, and why.

    `logprobs` are those of the chosen tokens, `top` the best tokens of each place by text (or by
    `token_id:N`); `prompt_logprobs` begin with the None of the first token. Times are milliseconds
    from sending the request; `ttft_ms` and `itl_ms` (one for each token after the first) are of
    streamed requests only. With n > 1, `others` are the texts after the first.
    """

    text: str = ""
    finish_reason: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    token_texts: tuple[str, ...] | None = None
    logprobs: tuple[float, ...] | None = None
    top: tuple[Mapping[str, float], ...] | None = None
    ids: tuple[int, ...] | None = None
    prompt_ids: tuple[int, ...] | None = None
    prompt_logprobs: tuple[float | None, ...] | None = None
    ttft_ms: float | None = None
    itl_ms: tuple[float, ...] = ()
    e2e_ms: float | None = None
    others: tuple[str, ...] = ()
    error: str | None = None


@dataclass(frozen=True)
class Abilities:
    """What an endpoint can do, by name; `missing` maps what it cannot do to the reason.

    Names: `chat`, `completion`, `seed`, `logprobs`, `prompt_logprobs`, `token_ids`, `usage`,
    `stream_usage`, `kprune`, `metrics`.
    """

    missing: Mapping[str, str]

    def can(self, name: str) -> bool:
        """Whether nothing speaks against it."""
        return name not in self.missing


class Client:
    """Asks one endpoint: with retries, back-off, a time limit, and bounds on answers in flight."""

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        concurrency: int = 4,
        timeout: float = 300.0,
        attempts: int = 6,
    ) -> None:
        self.endpoint = endpoint

    async def ask(self, request: Request) -> Answer:
        """The answer, or one that carries an error after all attempts."""
        raise NotImplementedError

    async def get(self, path: str) -> Any:
        """JSON or text of a path of the root (`/kprune`, `/metrics`, ...); None if it has none."""
        raise NotImplementedError
