"""The two endpoints of a comparison, the requests they get, and their answers.

Any OpenAI-compatible server will do. `probe.py` finds out once, before anything is measured, which
abilities an endpoint lacks (chat, log-probabilities, token counts, `/kprune`, `/metrics`). Metrics
that need them are reported as *not measured*, with the reason. An answer is either complete or
carries an error; nothing is filled in.
"""

import ipaddress
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import TypeAdapter, ValidationError

from vllm_kprune.compare.endpoint.extras import NO_EXTRAS, Extras
from vllm_kprune.errors import KPruneError, shown

__all__ = [
    "ORIGINAL",
    "PRUNED",
    "Abilities",
    "Answer",
    "Endpoint",
    "EndpointDied",
    "Request",
    "answer_as_json",
    "answer_from_json",
    "api_key",
    "clean_url",
    "same_endpoint",
    "shared_key",
]

ORIGINAL, PRUNED = "original", "pruned"  # the names of the sides, unless a user names them
_COMMON_KEY = "OPENAI_API_KEY"
# `v1`, `v2`, `v1beta`: anywhere in the path, so that `/v1/openai` stays as it is.
_VERSION = re.compile(r"v\d+\w*")


@dataclass(frozen=True)
class Endpoint:
    """One side of a comparison; `name` is `original`, or that of a pruned side (`pruned`).

    `url` includes `/v1`.
    """

    name: str
    url: str
    model: str
    api_key: str = field(default="", repr=False)
    extras: Extras = NO_EXTRAS

    @property
    def option(self) -> str:
        """How options about this side begin: `--original` or `--pruned`."""
        return f"--{ORIGINAL if self.name == ORIGINAL else PRUNED}"

    @property
    def secrets(self) -> tuple[str, ...]:
        """What no message may show, the longest first."""
        return tuple(sorted({self.api_key, *self.extras.secrets} - {""}, key=len, reverse=True))

    @property
    def root(self) -> str:
        """The URL of the server without `/v1`, below which `/kprune` and `/metrics` are found."""
        return self.url.removesuffix("/v1")

    @property
    def is_local(self) -> bool:
        """Whether it is on this machine, where no proxy should be in between."""
        host = urlsplit(self.url).hostname or ""
        try:
            return ipaddress.ip_address(host).is_loopback
        except ValueError:
            return host == "localhost" or host.endswith(".localhost")


class EndpointDied(KPruneError):
    """An endpoint no longer answers. The journal has all answers until then."""

    def __init__(self, endpoint: Endpoint, reason: str) -> None:
        self.reason = reason
        super().__init__(
            f"the {endpoint.name} endpoint ({endpoint.url}) no longer answers: {reason}"
        )


@dataclass(frozen=True)
class Request:
    """A request, the same for both sides; `messages` for a chat, `prompt` for a completion.

    `logprobs` is the number of best tokens at each position, and `prompt_logprobs` the same for the
    prompt (0: only its own tokens). With `name_by_id`, tokens are named `token_id:N`, which is
    unambiguous. Fields that an endpoint does not support are left out of its body. `extra` is added
    to the body unchanged.
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
    name_by_id: bool = False
    stream: bool = False
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Answer:
    """One raw answer. None stands for what the endpoint did not report.

    `error` says why there is no answer, and `final` that another attempt would end the same way.
    `logprobs` belong to the chosen tokens. `top` has the best tokens of each position by text (or
    as `token_id:N`). `prompt_logprobs` begin with None for the first token.
    Times are in milliseconds, counted from the attempt that was answered. `ttft_ms` and `itl_ms`
    (one value for each token after the first) exist for streamed requests only; `untimed` says why
    `itl_ms` is empty. With n > 1, `others` are the texts after the first one, and `logprobs` and
    the like belong to the first. `retries` counts the failed attempts.

    `text` is what the server sent as the answer; `reasoning` is what it sent apart from it, and
    `tool_calls` names the tools that the model called. Reasoning between tags is still in `text`
    (`suites/spoken.py` separates it).
    """

    text: str = ""
    reasoning: str = ""
    reasoning_tokens: int | None = None
    tool_calls: tuple[str, ...] = ()
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
    untimed: str | None = None
    retries: int = 0
    error: str | None = None
    final: bool = False


@dataclass(frozen=True)
class Abilities:
    """The abilities of an endpoint; `missing` maps each one that it lacks to the reason.

    Names: `chat`, `completion`, `stream`, `seed`, `max_tokens` (missing: only
    `max_completion_tokens`), `logprobs`, `prompt_logprobs`, `token_ids`, `usage`, `stream_usage`,
    `kprune`, `metrics`.
    """

    missing: Mapping[str, str] = field(default_factory=dict)

    def can(self, name: str) -> bool:
        """Whether the endpoint has this ability."""
        return name not in self.missing


_ANSWERS = TypeAdapter(Answer)


def answer_as_json(answer: Answer) -> dict[str, Any]:
    """An answer for the journal, without the fields that the endpoint did not report."""
    # Defaults are not written. Changing a default therefore changes what old journals mean.
    value: dict[str, Any] = _ANSWERS.dump_python(answer, mode="json", exclude_defaults=True)
    return value


def answer_from_json(value: Any) -> Answer:
    """The answer that `answer_as_json` wrote; a `KPruneError` for anything else."""
    try:
        return _ANSWERS.validate_python(value)
    except ValidationError as error:
        where = ".".join(map(str, error.errors()[0]["loc"]))
        raise KPruneError(
            f"the journal has an answer with an invalid {where or 'structure'}; "
            "start over with --fresh"
        ) from None


def clean_url(option: str, url: str) -> str:
    """The base URL of an endpoint, ending in `/v1` unless it names another version.

    >>> clean_url("--original", "http://127.0.0.1:8000/")
    'http://127.0.0.1:8000/v1'
    """
    try:
        parts = urlsplit(url.strip())
        valid = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # a port that is not a number, an incomplete IPv6 address
        valid = False
    if not valid:
        raise KPruneError(f"{option}: got {shown(url)}, expected a URL such as http://HOST:8000")
    if parts.username or parts.password:
        raise KPruneError(
            f"{option}: remove the user and password from the URL; API keys come from the "
            "environment, see --help"
        )
    if parts.query or parts.fragment:
        raise KPruneError(f"{option}: got {shown(url)}, expected a URL without ? or #")
    path = parts.path.rstrip("/")
    versioned = any(_VERSION.fullmatch(part) for part in path.split("/"))
    return f"{parts.scheme}://{parts.netloc}{path}{'' if versioned else '/v1'}"


def same_endpoint(one: Endpoint, other: Endpoint) -> bool:
    """Whether both are the same model at the same address, however the URL is written.

    With other extras it is another side: one server with and without thinking can be compared.

    >>> one = Endpoint("original", clean_url("", "http://LOCALHOST:80"), "m")
    >>> same_endpoint(one, Endpoint("pruned", clean_url("", "http://127.0.0.1/v1/"), "m"))
    True
    """
    alike = one.model == other.model and one.extras == other.extras
    return alike and _address(one.url) == _address(other.url)


def _address(url: str) -> tuple[str, str, int, str]:
    parts = urlsplit(url)
    # `hostname` is in lower case.
    host = parts.hostname or ""
    port = parts.port or (443 if parts.scheme == "https" else 80)
    return parts.scheme, "127.0.0.1" if host == "localhost" else host, port, parts.path


def api_key(name: str, environment: Mapping[str, str] | None = None) -> str:
    """The key of an endpoint: `KPRUNE_ORIGINAL_API_KEY`, `…_PRUNED_…`, else `OPENAI_API_KEY`.

    Of several pruned sides, `guarded` has `KPRUNE_GUARDED_API_KEY`, else that of `pruned`.
    """
    environment = os.environ if environment is None else environment
    of_role = [] if name in (ORIGINAL, PRUNED) else [f"KPRUNE_{PRUNED.upper()}_API_KEY"]
    for variable in (f"KPRUNE_{name.upper()}_API_KEY", *of_role, _COMMON_KEY):
        key = environment.get(variable, "").strip()
        # Such a key cannot be sent in a header. The message must not show it.
        if key and not (key.isascii() and key.isprintable()):
            raise KPruneError(f"{variable} has characters that no API key has; copy it again")
        if key:
            return key
    return ""


def shared_key(
    original: str,
    pruned: str,
    environment: Mapping[str, str] | None = None,
    name: str = PRUNED,
) -> str | None:
    """A warning if two hosts would both get the key `OPENAI_API_KEY`, else None."""
    hosts = [urlsplit(url).netloc for url in (original, pruned)]
    environment = os.environ if environment is None else environment
    common = environment.get(_COMMON_KEY, "").strip()
    keys = [api_key(name, environment) for name in (ORIGINAL, name)]
    if not common or hosts[0] == hosts[1] or keys != [common, common]:
        return None
    return (
        f"{_COMMON_KEY} is sent to both {hosts[0]} and {hosts[1]}; set KPRUNE_ORIGINAL_API_KEY and "
        "KPRUNE_PRUNED_API_KEY if one of them should not get it"
    )
