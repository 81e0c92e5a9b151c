"""What a user adds to every request of one side: fields of the body, headers, a query.

    --extra-body '{"chat_template_kwargs": {"enable_thinking": false}}'
    --header "api-key: $AZURE_KEY"
    --query api-version=2024-10-21

Values of headers and queries may be keys, so only their names are ever shown or kept.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from vllm_kprune.errors import KPruneError, shown
from vllm_kprune.storage.bounded import Limits, Unfit, parse_json

__all__ = ["NO_EXTRAS", "Extras", "extra_body", "extra_headers", "extra_query"]

_HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_SECRET_NAME = re.compile(r"key|token|secret|sig|auth|code|password", re.IGNORECASE)
_LEAST_SECRET = 20  # characters
_BODY = Limits(bytes=100_000, values=10_000)
# Fields that the suites set, with the option that changes them. Another value on one side would
# make the two sides answer different questions.
_OURS: Mapping[str, str] = {
    "model": "use --original-model or --pruned-model",
    "max_tokens": "use --max-tokens",
    "max_completion_tokens": "use --max-tokens",
    "seed": "use --seed",
    **dict.fromkeys(
        ("messages", "prompt", "temperature", "top_p", "n", "stream", "stream_options", "stop"),
        "the suites set it",
    ),
    **dict.fromkeys(
        ("logprobs", "top_logprobs", "prompt_logprobs", "return_token_ids"), "the suites set it"
    ),
}


@dataclass(frozen=True)
class Extras:
    """What is added to every request of one side."""

    body: Mapping[str, Any] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    query: Mapping[str, str] = field(default_factory=dict, repr=False)

    def over(self, common: "Extras") -> "Extras":
        """These extras of one side, and those of both sides that they do not replace."""
        return Extras(
            {**common.body, **self.body},
            {**common.headers, **self.headers},
            {**common.query, **self.query},
        )

    @property
    def settings(self) -> dict[str, Any]:
        """What a resumed run must share, as JSON, without any value that may be a key."""
        named = {"headers": sorted(map(str.lower, self.headers)), "query": sorted(self.query)}
        found = {"extra_body": dict(self.body), **named}
        return {name: value for name, value in found.items() if value}

    @property
    def secrets(self) -> tuple[str, ...]:
        """Values that no message may show: a version or a region is no secret."""
        named = {**self.headers, **self.query}
        return tuple(
            value
            for name, value in named.items()
            if len(value) >= _LEAST_SECRET or _SECRET_NAME.search(name)
        )


NO_EXTRAS = Extras()


def extra_body(name: str, text: str | None) -> dict[str, Any]:
    """The fields of an option `--extra-body`; `name` is the option for messages."""
    if text is None:
        return {}
    example = '{"chat_template_kwargs": {"enable_thinking": false}}'
    try:
        value = parse_json(text, _BODY)
    except Unfit:
        value = None
    if not isinstance(value, dict):
        raise KPruneError(f"{name}: got {shown(text)}, expected a JSON object such as {example}")
    for key in value:
        if key in _OURS:
            raise KPruneError(f"{name}: {key!r} cannot be set here; {_OURS[key]}")
    return value


def extra_headers(name: str, lines: Iterable[str]) -> dict[str, str]:
    """The headers of options `--header`, without showing a value in a message."""
    found: dict[str, str] = {}
    for line in lines:
        key, colon, value = line.partition(":")
        key, value = key.strip(), value.strip()
        if not colon or not _HEADER_NAME.fullmatch(key):
            raise KPruneError(f'{name}: expected "NAME: VALUE", such as "api-key: KEY"')
        if not (value.isascii() and value.isprintable()):
            raise KPruneError(f"{name}: the value of {key!r} has characters that no header has")
        found[key] = value
    return found


def extra_query(name: str, parts: Iterable[str]) -> dict[str, str]:
    """The parameters of options `--query`."""
    found: dict[str, str] = {}
    for part in parts:
        key, equals, value = part.partition("=")
        if not equals or not key.strip():
            raise KPruneError(f"{name}: expected NAME=VALUE, such as api-version=2024-10-21")
        found[key.strip()] = value.strip()
    return found
