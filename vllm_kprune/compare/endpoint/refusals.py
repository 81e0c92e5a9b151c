"""What an endpoint says instead of an answer: errors in statuses and bodies, and pages.

A status or body decides whether another attempt can help (`Trouble`) or not (`Refused`, `TooLong`),
or whether the user must do something first (`KeyRefused`). The key appears in no message.
"""

import codecs
import json
import re
from collections.abc import Sequence
from typing import Any, Literal

from vllm_kprune.compare.endpoint.messages import Endpoint
from vllm_kprune.compare.endpoint.wire import Malformed
from vllm_kprune.errors import KPruneError, shown
from vllm_kprune.storage.bounded import Limits, Unfit, parse_json

__all__ = [
    "BUSY",
    "MAX_ERROR_BYTES",
    "KeyRefused",
    "Refused",
    "TooLong",
    "Trouble",
    "page_in",
    "parse",
    "refusal_in",
    "words_of",
]

MAX_ERROR_BYTES = 65536
# The transport reads less than that. Log-probabilities of a long prompt are a million values.
_ANSWER = Limits(bytes=64 << 20, values=4_000_000, lenient=True, halves=True)
_MAX_WORDS = 300
# Escaped surrogates are usually whole pairs, such as emoji, which `json.loads` joins. `_HALF` finds
# those that are left over. The search in bytes spares most answers that second pass.
_HALF_ESCAPED = re.compile(rb"\\u[dD][89a-fA-F]")
_HALF = re.compile("[\ud800-\udfff]")
_HTML = re.compile(rb"\s*(?:<!doctype html|<html|<head|<body)", re.IGNORECASE)
_TITLE = re.compile(r"<title[^>]*>([^<]*)</title>", re.IGNORECASE)
_HTML_TAG = re.compile(
    r"<(?:script|style).*?</(?:script|style)>|<[^>]*>", re.IGNORECASE | re.DOTALL
)
# Request timeout, conflict, too early, too many requests.
BUSY = (408, 409, 425, 429)


class Refused(Exception):
    """A status that another attempt would not change, with the server's message."""

    def __init__(self, status: int, words: str) -> None:
        self.status, self.words = status, words
        super().__init__(f"HTTP {status}: {words}")


class TooLong(Exception):
    """An answer that was too long to be read to its end."""


class Trouble(Exception):
    """A problem that may be gone at the next attempt.

    `wait` is the number of seconds that the server asked to wait.
    """

    def __init__(
        self,
        kind: Literal["connection", "timeout", "server", "busy"],
        reason: str,
        wait: float | None = None,
    ) -> None:
        self.kind, self.wait = kind, wait
        super().__init__(reason)


class KeyRefused(KPruneError):
    """The endpoint refuses the key, or asks for one."""

    def __init__(self, endpoint: Endpoint, reason: str) -> None:
        side = endpoint.name
        sent = bool(endpoint.api_key or endpoint.extras.headers)
        what = "the API key was refused by" if sent else "an API key is needed by"
        self.reason = reason
        super().__init__(
            f"{what} the {side} endpoint ({reason}); set KPRUNE_{side.upper()}_API_KEY or "
            "OPENAI_API_KEY to a valid one"
        )


def refusal_in(value: Any, endpoint: Endpoint) -> None:
    """Raise what an error in the body of an answer with status 200 means; some gateways do that.

    The code of the error decides as a status would; without one, no later attempt will help.
    """
    if not isinstance(value, dict) or value.get("choices"):
        return
    # FastAPI has `detail`, and others `message`.
    if not any(value.get(name) for name in ("error", "detail", "message")):
        return
    words = words_of(json.dumps(value).encode(), endpoint.secrets)
    error = value.get("error")
    code = error.get("code") if isinstance(error, dict) else None
    code = code if isinstance(code, int) else 200
    if code in (401, 403):
        raise KeyRefused(endpoint, f"code {code}: {words}")
    if code in BUSY:
        raise Trouble("busy", f"code {code}: {words}")
    if code >= 500 and code != 501:
        raise Trouble("server", f"code {code}: {words}")
    raise Refused(code, words)


def page_in(data: bytes) -> str | None:
    """What a page of HTML says, if the data are one: its title, or its first words."""
    if not _HTML.match(data[:MAX_ERROR_BYTES]):
        return None
    text = data[:MAX_ERROR_BYTES].decode(errors="replace")
    title = _TITLE.search(text)
    words = title[1] if title else _HTML_TAG.sub(" ", text)
    return f"an HTML page instead of an answer: {shown(' '.join(words.split())[:_MAX_WORDS])}"


def parse(data: bytes) -> Any:
    """Parsed JSON; `Malformed` for anything else, including JSON that is nested too deeply.

    Lone surrogates, which JSON can escape and UTF-8 cannot hold, become replacement characters.
    """
    try:
        value = parse_json(data.removeprefix(codecs.BOM_UTF8), _ANSWER)
        if _HALF_ESCAPED.search(data):
            value = json.loads(_HALF.sub("\ufffd", json.dumps(value, ensure_ascii=False)))
        return value
    except Unfit:
        raise Malformed("an answer that is not JSON") from None


def words_of(data: bytes, secrets: Sequence[str]) -> str:
    """The message of an error's body as one short line, without the keys that were sent."""
    try:
        value = parse(data)
    except Malformed:
        value = None
    # Goes down step by step: {"error": {"message": "no such model"}} gives the innermost text.
    for name in ("error", "message", "detail"):
        if isinstance(value, dict) and value.get(name):
            value = value[name]
    text = value if isinstance(value, str) else data.decode(errors="replace")
    text = " ".join(text.split())
    # Before the text is cut, as a cut could leave half of the key.
    for secret in secrets:
        text = text.replace(secret, "***")
    return text if len(text) <= _MAX_WORDS else f"{text[:_MAX_WORDS]}…"
