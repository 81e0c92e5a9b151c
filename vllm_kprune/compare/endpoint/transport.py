"""One attempt at an endpoint over HTTP, bounded in size and time.

The next attempt may succeed after `Trouble`, but not after `Refused` or `TooLong`. Redirects are
not followed, since they would carry the key elsewhere. Proxies from the environment are not used
for servers on this machine. The key appears in no message.
"""

import asyncio
import email.utils
import json
import re
import time
from collections.abc import AsyncGenerator, Awaitable, Mapping, Sequence
from contextlib import aclosing
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from vllm_kprune.compare.endpoint.messages import Endpoint
from vllm_kprune.compare.endpoint.wire import Malformed
from vllm_kprune.errors import KPruneError

if TYPE_CHECKING:
    import httpx

__all__ = ["Refused", "TooLong", "Transport", "Trouble", "parse"]

T = TypeVar("T")
_CONNECT_SECONDS = 10.0
_MAX_BYTES = 16 * 1024 * 1024
_MAX_ERROR_BYTES = 65536
_MAX_WORDS = 300
# Escaped surrogates are usually whole pairs, such as emoji, which `json.loads` joins. `_HALF` finds
# those that are left over. The search in bytes spares most answers that second pass.
_HALF_ESCAPED = re.compile(rb"\\u[dD][89a-fA-F]")
_HALF = re.compile("[\ud800-\udfff]")
# Request timeout, conflict, too early, too many requests.
_BUSY = (408, 409, 425, 429)


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


class Transport:
    """Connections to one endpoint; `timeout` limits one attempt, in seconds."""

    def __init__(self, endpoint: Endpoint, timeout: float) -> None:
        self.endpoint = endpoint
        self.timeout = timeout
        http = _httpx()
        key, extras = endpoint.api_key, endpoint.extras
        self._http: httpx.AsyncClient = http.AsyncClient(
            headers=_headers(key, extras.headers),
            params=dict(extras.query),
            # httpx limits each read. A server that sends a byte a minute is stopped by `_in_time`.
            timeout=http.Timeout(timeout, connect=_CONNECT_SECONDS),
            trust_env=not endpoint.is_local,
            verify=not endpoint.url.startswith("http:"),  # loading certificates is slow
            # The client limits concurrency. A queue for connections would add to measured times.
            limits=http.Limits(max_connections=None),
        )

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def get(self, url: str) -> bytes:
        """The body of an answer."""
        return await self._in_time(self._whole("GET", url, None))

    async def post(self, url: str, body: Mapping[str, Any]) -> bytes:
        """The body of an answer."""
        return await self._in_time(self._whole("POST", url, body))

    async def stream(self, url: str, body: Mapping[str, Any]) -> list[tuple[float, Any]]:
        """The server-sent events with their arrival times, in seconds of `perf_counter`."""
        return await self._in_time(self._events(url, body))

    async def _in_time(self, work: Awaitable[T]) -> T:
        try:
            async with asyncio.timeout(self.timeout):
                return await work
        except TimeoutError:
            raise self._late() from None

    def _late(self) -> Trouble:
        return Trouble("timeout", f"no answer in {self.timeout:g} s")

    async def _whole(self, method: str, url: str, body: Mapping[str, Any] | None) -> bytes:
        data = bytearray()
        async with aclosing(self._chunks(method, url, body)) as chunks:
            async for chunk in chunks:
                data += chunk
        return bytes(data)

    async def _events(self, url: str, body: Mapping[str, Any]) -> list[tuple[float, Any]]:
        events, rest, done = [], b"", False
        async with aclosing(self._chunks("POST", url, body)) as chunks:
            async for chunk in chunks:
                moment = time.perf_counter()  # before parsing, which must not be measured
                # An event can be split over chunks: what follows the last line feed is kept.
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    # `strip` also removes the carriage return of servers that end lines with both.
                    data = line.removeprefix(b"data:").strip()
                    done = done or data == b"[DONE]"
                    if line.startswith(b"data:") and not done:
                        events.append((moment, self._event(data)))
        if not done:  # a server or proxy closed early, and the text may be incomplete
            raise Trouble("connection", "the stream broke off")
        return events

    def _event(self, data: bytes) -> Any:
        value = parse(data)
        # Once a stream has begun with status 200, vLLM can only report an error inside it.
        if isinstance(value, dict) and "error" in value and not value.get("choices"):
            raise Trouble("server", _words(data, self.endpoint.secrets))
        return value

    async def _chunks(
        self, method: str, url: str, body: Mapping[str, Any] | None
    ) -> AsyncGenerator[bytes, None]:
        http, size = _httpx(), 0
        try:
            async with self._http.stream(method, url, json=body) as response:
                # Also for 3xx, as redirects are not followed.
                if response.status_code != 200:
                    await self._refuse(response)
                async for chunk in response.aiter_bytes():
                    # Counted after decompression, where a small answer can become huge.
                    size += len(chunk)
                    if size > _MAX_BYTES:
                        raise TooLong(f"an answer of more than {_MAX_BYTES:,} bytes")
                    yield chunk
        except (http.ReadTimeout, http.WriteTimeout, http.PoolTimeout):
            raise self._late() from None
        except (http.TransportError, http.DecodingError) as error:
            raise Trouble("connection", f"{type(error).__name__} {error}".strip()) from None

    async def _refuse(self, response: "httpx.Response") -> None:
        """Raise what a status other than 200 means."""
        side = self.endpoint.name
        words = _words(await _beginning(response), self.endpoint.secrets)
        status = response.status_code
        if status in (401, 403):
            raise KPruneError(
                f"the {side} endpoint asks for a valid API key (HTTP {status}: {words}); "
                f"set KPRUNE_{side.upper()}_API_KEY or OPENAI_API_KEY"
            )
        if status in _BUSY:
            raise Trouble("busy", f"HTTP {status}: {words}", _retry_after(response.headers))
        # 501 means "not implemented", which no later attempt changes.
        if status >= 500 and status != 501:
            raise Trouble("server", f"HTTP {status}: {words}", _retry_after(response.headers))
        raise Refused(status, words)


def parse(data: bytes) -> Any:
    """Parsed JSON; `Malformed` for anything else, including JSON that is nested too deeply.

    Lone surrogates, which JSON can escape and UTF-8 cannot hold, become replacement characters.
    """
    try:
        value = json.loads(data.decode("utf-8-sig"))
        if _HALF_ESCAPED.search(data):
            value = json.loads(_HALF.sub("\ufffd", json.dumps(value, ensure_ascii=False)))
        return value
    except (ValueError, RecursionError):
        raise Malformed("an answer that is not JSON") from None


def _headers(key: str, own: Mapping[str, str]) -> dict[str, str]:
    """The key and the user's own headers, which win: a gateway may want another Authorization."""
    bearer = {"Authorization": f"Bearer {key}"} if key else {}
    taken = {name.lower() for name in own}
    return {name: value for name, value in bearer.items() if name.lower() not in taken} | {**own}


async def _beginning(response: "httpx.Response") -> bytes:
    """Enough of an error's body to understand it."""
    data = b""
    async for chunk in response.aiter_bytes():
        data += chunk
        if len(data) > _MAX_ERROR_BYTES:
            break
    return data


def _words(data: bytes, secrets: Sequence[str]) -> str:
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


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds to wait, from a header with seconds or a date; None without a usable header."""
    text = headers.get("retry-after", "").strip()
    if text.isdecimal():
        return float(text)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None


def _httpx() -> ModuleType:
    try:
        import httpx
    except ModuleNotFoundError:
        raise KPruneError(
            "kprune compare needs httpx; pip install 'vllm-kprune[compare]'"
        ) from None
    return httpx
