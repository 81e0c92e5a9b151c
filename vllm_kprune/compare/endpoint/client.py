"""A client that does not hang, does not flood an endpoint, and does not trust it.

Rate limits, overload, lost connections and time-outs are retried with exponential back-off and
jitter, and no sooner than `Retry-After` says. Refusals are not retried. An endpoint that no attempt
reaches counts as dead (`EndpointDied`), so that the remaining requests need not time out one by
one.
"""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypeVar

from vllm_kprune.compare.endpoint.messages import (
    Abilities,
    Answer,
    Endpoint,
    EndpointDied,
    Request,
)
from vllm_kprune.compare.endpoint.refusals import (
    KeyRefused,
    Refused,
    TooLong,
    Trouble,
    page_in,
    parse,
    refusal_in,
)
from vllm_kprune.compare.endpoint.request_body import body_of, path_of
from vllm_kprune.compare.endpoint.transport import Transport
from vllm_kprune.compare.endpoint.wire import (
    Malformed,
    read_answer,
    read_chunk,
    whole_answer,
)
from vllm_kprune.errors import KPruneError

__all__ = ["Client"]

T = TypeVar("T")
_LONGEST_WAIT = 120.0  # seconds; if a server asks for more, the request fails
_TIMEOUT_ATTEMPTS = 2  # each costs the full time limit
_GIVEN_UP_IN_A_ROW = 5
_FINAL = (400, 413, 422)  # about the request itself: it will always be refused
_ENDS = (402, 404)  # about the endpoint: no credit, no such model; every request would fail
# The longest wait between attempts, as a multiple of the first wait: with 0.5 s, they are 4 s, 4 s,
# 16 s and 64 s.
_LONGEST = {"connection": 8, "timeout": 8, "server": 32, "busy": 128}


class Client:
    """Asks one endpoint, with at most `concurrency` requests at a time.

    `timeout` limits one attempt, in seconds. `first_wait` is the wait after the first failure; it
    doubles with each further one.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        concurrency: int = 4,
        timeout: float = 300.0,
        attempts: int = 8,
        first_wait: float = 0.5,
    ) -> None:
        self.endpoint = endpoint
        self.abilities = Abilities()
        self._timeout, self._attempts, self._first_wait = timeout, attempts, first_wait
        self._slots = asyncio.Semaphore(concurrency)
        # A moment of `time.monotonic` before which no request is sent; see `_turn`.
        self._not_before = 0.0
        self._given_up = 0
        self._answered = False
        self._transport = Transport(endpoint, timeout)

    @contextmanager
    def within(self, seconds: float) -> Iterator[None]:
        """Limit attempts to this time inside the `with` block."""
        # One value for the whole client: requests that run meanwhile get it as well.
        usual = self._transport.timeout
        self._transport.timeout = min(usual, seconds)
        try:
            yield
        finally:
            self._transport.timeout = usual

    def again(self, *, concurrency: int) -> "Client":
        """A client of the same endpoint with its own connections and another concurrency."""
        other = Client(
            self.endpoint,
            concurrency=concurrency,
            timeout=self._timeout,
            attempts=self._attempts,
            first_wait=self._first_wait,
        )
        other.abilities = self.abilities
        return other

    async def close(self) -> None:
        """Close the connections."""
        await self._transport.close()

    async def ask(self, request: Request) -> Answer:
        """The answer, or an answer with the error of the last attempt.

        Raises `EndpointDied` if no attempt reaches the server, or if it has no such model or no
        credit any more, and `KPruneError` for a wrong key.
        """
        made = 0

        async def attempt() -> Answer:
            nonlocal made
            made += 1
            return await self.ask_once(request)

        # The slot is kept while waiting for another attempt, so that an endpoint in trouble gets
        # fewer requests instead of others.
        async with self._slots:
            try:
                answer = await self.try_again(attempt)
            except Refused as error:
                if error.status in _ENDS:
                    raise EndpointDied(self.endpoint, str(error)) from None
                answer = Answer(error=str(error), final=error.status in _FINAL)
            except (TooLong, Trouble) as error:
                answer = Answer(error=str(error))
            except KeyRefused as error:
                # A key that was revoked midway: what was measured until then is reported.
                if self._answered:
                    raise EndpointDied(self.endpoint, str(error)) from None
                raise
            else:
                self._answered = True
        # `latency` repeats a round where this is not 0, since it measured waiting.
        return replace(answer, retries=made - 1)

    async def get(self, path: str) -> Any:
        """The content of a path: parsed JSON, else text; None if the server answers with an error.

        Paths are relative to the server's root (`/kprune`, `/metrics`), and `/v1/…` to the base
        URL.
        """
        try:
            return await self.fetch(path)
        except (Refused, TooLong, Trouble):
            return None

    async def fetch(self, path: str) -> Any:
        """Like `get`, but raises the errors of `transport` if there is no answer."""
        url = self.endpoint.root + path
        if path.startswith("/v1/"):
            url = self.endpoint.url + path.removeprefix("/v1")
        async with self._slots:
            data = await self.try_again(lambda: self._transport.get(url))
        try:
            return parse(data)
        except Malformed:
            return data.decode(errors="replace")

    async def ask_once(self, request: Request) -> Answer:
        """One attempt; raises the errors of `transport` for anything but a complete answer."""
        url = self.endpoint.url + path_of(request)
        # Fields that a suite sets win: the input suite adds some of its own.
        body = {**self.endpoint.extras.body}
        body |= body_of(request, self.endpoint.model, self.abilities)
        started = time.perf_counter()
        try:
            if request.stream:
                events = await self._transport.stream(url, body)
                return whole_answer([read_chunk(event, at) for at, event in events], started)
            data = await self._transport.post(url, body)
            # A page with status 200 comes from a wrong address or a login, not from a busy server.
            if page := page_in(data):
                raise Refused(200, page)
            value = parse(data)
            refusal_in(value, self.endpoint)
            return read_answer(value, 1000 * (time.perf_counter() - started))
        # Such as a proxy's page with status 200: another attempt may get through.
        except Malformed as error:
            raise Trouble("server", str(error)) from None

    async def try_again(self, attempt: Callable[[], Awaitable[T]]) -> T:
        """The result of the first attempt that succeeds; raises the last `Trouble` if none does."""
        for number in range(self._attempts):
            await self._turn()
            try:
                value = await attempt()
            except Trouble as error:
                # Python deletes `error` at the end of this block; it is needed after the loop.
                trouble = error
                if self._is_hopeless(number, trouble):
                    break
                await asyncio.sleep(self._wait(number, trouble))
                continue
            # A refusal is an answer, too: the server lives.
            except (Refused, TooLong):
                self._lives()
                raise
            self._lives()
            return value
        # A single prompt can make a server hang up each time. Several requests in a row that were
        # given up mean that the server itself is in trouble.
        self._given_up += 1
        if self._given_up >= _GIVEN_UP_IN_A_ROW or not await self._is_there(trouble):
            raise EndpointDied(self.endpoint, str(trouble)) from None
        raise trouble

    def _lives(self) -> None:
        self._given_up = 0

    async def _is_there(self, trouble: Trouble) -> bool:
        """Whether the server answers at all: some hang up on a single prompt only."""
        if trouble.kind != "connection":
            return True
        try:
            await self._transport.get(f"{self.endpoint.url}/models")
        except Trouble as silence:
            # An error status is an answer; silence is not.
            return silence.kind in ("server", "busy")
        # KPruneError: the server asks for a key, so it is there.
        except (KPruneError, Refused, TooLong):
            return True
        return True

    def _is_hopeless(self, number: int, trouble: Trouble) -> bool:
        # `number` counts from 0: `number + 1` attempts were made.
        late = trouble.kind == "timeout" and number + 1 >= _TIMEOUT_ATTEMPTS
        return late or number + 1 >= self._attempts or (trouble.wait or 0) > _LONGEST_WAIT

    def _wait(self, number: int, trouble: Trouble) -> float:
        """Seconds until the next attempt; `Retry-After` can only lengthen the wait."""
        longest = self._first_wait * min(2**number, _LONGEST[trouble.kind])
        # Jitter keeps requests that failed together from coming back together.
        wait = float(longest * random.uniform(0.5, 1.0))
        if trouble.wait is None:
            return wait
        # This holds for all requests, because the limit belongs to the endpoint.
        moment = time.monotonic() + max(trouble.wait, wait)
        self._not_before = max(self._not_before, moment)
        return 0.0

    async def _turn(self) -> None:
        """Wait as long as the endpoint asked, plus jitter so that requests do not all start at
        once."""
        late = self._not_before - time.monotonic()
        if late > 0:
            await asyncio.sleep(late + random.uniform(0.0, max(self._first_wait, late / 4)))
