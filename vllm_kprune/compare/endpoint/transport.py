"""One attempt at an endpoint over HTTP, bounded in size and time.

The next attempt may succeed after `Trouble`, but not after `Refused` or `TooLong`. A `KPruneError`
is the user's to solve: a key, a certificate, a proxy, an address that redirects. Redirects are not
followed, since they would carry the key elsewhere. Proxies from the environment are not used for
servers on this machine; certificates (`SSL_CERT_FILE`, `SSL_CERT_DIR`) are. The key appears in no
message.
"""

import asyncio
import email.utils
import time
from collections.abc import AsyncGenerator, Awaitable, Mapping
from contextlib import aclosing
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit, urlunsplit

from vllm_kprune.compare.endpoint.connections import certificates, check_lasting
from vllm_kprune.compare.endpoint.messages import Endpoint
from vllm_kprune.compare.endpoint.refusals import (
    BUSY,
    MAX_ERROR_BYTES,
    KeyRefused,
    Refused,
    TooLong,
    Trouble,
    parse,
    words_of,
)
from vllm_kprune.errors import KPruneError

if TYPE_CHECKING:
    import httpx

__all__ = ["Transport"]

T = TypeVar("T")
_CONNECT_SECONDS = 10.0
_MAX_BYTES = 16 * 1024 * 1024


class Transport:
    """Connections to one endpoint; `timeout` limits one attempt, in seconds."""

    def __init__(self, endpoint: Endpoint, timeout: float) -> None:
        self.endpoint = endpoint
        self.timeout = timeout
        self._http: httpx.AsyncClient = self._opened(_httpx())

    def _opened(self, http: ModuleType) -> "httpx.AsyncClient":
        endpoint, timeout = self.endpoint, self.timeout
        key, extras = endpoint.api_key, endpoint.extras
        settings: dict[str, Any] = dict(
            headers=_headers(key, extras.headers),
            params=dict(extras.query),
            # httpx limits each read. A server that sends a byte a minute is stopped by `_in_time`.
            timeout=http.Timeout(timeout, connect=_CONNECT_SECONDS),
            trust_env=not endpoint.is_local,
            # Loading certificates is slow.
            verify=False if endpoint.url.startswith("http:") else certificates(endpoint.name),
            # The client limits concurrency. A queue for connections would add to measured times.
            limits=http.Limits(max_connections=None),
        )
        try:
            return http.AsyncClient(**settings)  # type: ignore[no-any-return]
        # httpx reads the proxies of the environment here: a scheme that it does not know, or SOCKS
        # without the package that it needs.
        except (ImportError, ValueError) as error:
            raise KPruneError(
                f"the proxy for the {endpoint.name} endpoint cannot be used: {error} (check "
                "HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and NO_PROXY)"
            ) from None

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
            raise Trouble("server", words_of(data, self.endpoint.secrets))
        return value

    async def _chunks(
        self, method: str, url: str, body: Mapping[str, Any] | None
    ) -> AsyncGenerator[bytes, None]:
        http, size = _httpx(), 0
        try:
            async with self._http.stream(method, url, json=body) as response:
                # Also for 3xx, as redirects are not followed.
                if response.status_code != 200:
                    await self._refuse(response, of_api=url.startswith(self.endpoint.url))
                async for chunk in response.aiter_bytes():
                    # Counted after decompression, where a small answer can become huge.
                    size += len(chunk)
                    if size > _MAX_BYTES:
                        raise TooLong(f"an answer of more than {_MAX_BYTES:,} bytes")
                    yield chunk
        except (http.ReadTimeout, http.WriteTimeout, http.PoolTimeout):
            raise self._late() from None
        except http.InvalidURL as error:
            raise KPruneError(f"{url} is no URL that can be asked: {error}") from None
        except (http.TransportError, http.DecodingError) as error:
            check_lasting(error, self.endpoint)
            raise Trouble("connection", f"{type(error).__name__} {error}".strip()) from None

    async def _refuse(self, response: "httpx.Response", *, of_api: bool) -> None:
        """Raise what a status other than 200 means.

        Paths outside of the API, such as `/metrics`, may be closed or lead elsewhere; then the
        endpoint just lacks them.
        """
        side = self.endpoint.name
        words = words_of(await _beginning(response), self.endpoint.secrets)
        status = response.status_code
        if status in (401, 403) and of_api:
            raise KeyRefused(self.endpoint, f"HTTP {status}: {words}")
        if 300 <= status < 400 and of_api:
            target = _without_query(response.headers.get("location", ""))
            raise KPruneError(
                f"the {side} endpoint ({self.endpoint.url}) redirects to {target or 'no address'} "
                f"(HTTP {status}), which is not followed, as it would carry the key elsewhere; "
                f"name the final address with --{side}"
            )
        if status in BUSY:
            raise Trouble("busy", f"HTTP {status}: {words}", _retry_after(response.headers))
        # 501 means "not implemented", which no later attempt changes.
        if status >= 500 and status != 501:
            raise Trouble("server", f"HTTP {status}: {words}", _retry_after(response.headers))
        raise Refused(status, words)


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
        if len(data) > MAX_ERROR_BYTES:
            break
    return data


def _without_query(url: str) -> str:
    """The address without a query or a user, which may be secrets."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return ""
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


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
