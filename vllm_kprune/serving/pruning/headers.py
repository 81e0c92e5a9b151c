"""Response headers that say what pruning did: an ASGI middleware that also works for streams.

`--kprune-input-pruner` adds it to vLLM's `--middleware`. A response starts after its prompt has
been rendered, so its headers can report the pruning.
"""

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from vllm_kprune.serving.pruning.metrics import RequestReport, current_report

__all__ = ["PruneHeaders"]

_ORIGINAL = b"x-kprune-prompt-tokens-original"
_KEPT = b"x-kprune-prompt-tokens-kept"
_SEGMENTS = b"x-kprune-segments-pruned"

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class PruneHeaders:
    """Pure ASGI: it does not read or delay what passes through."""

    def __init__(self, app: Callable[[Message, Receive, Send], Awaitable[None]]) -> None:
        self._app = app

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Give the request a report to fill in, and add it to the response as headers."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        report = RequestReport()

        async def send_with_headers(message: Message) -> None:
            # Not `rendered`: a request without a prompt (`/health`), or one that was refused
            # before.
            if message["type"] == "http.response.start" and report.rendered:
                message["headers"] = [*message.get("headers", ()), *_headers(report)]
            await send(message)

        # A context variable reaches code that sees no HTTP request. Tasks get a copy of the
        # context, so the report must be filled in, not replaced: a new one set there would not be
        # seen here.
        token = current_report.set(report)
        try:
            await self._app(scope, receive, send_with_headers)
        finally:
            current_report.reset(token)


def _headers(report: RequestReport) -> list[tuple[bytes, bytes]]:
    return [
        (_ORIGINAL, b"%d" % report.original),
        (_KEPT, b"%d" % report.kept),
        (_SEGMENTS, b"%d" % report.segments),
    ]
