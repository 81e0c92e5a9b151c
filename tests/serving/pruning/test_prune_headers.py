"""The response headers: only for rendered prompts, before the first byte, and per request."""

import asyncio
from typing import Any

from vllm_kprune.serving.pruning.headers import PruneHeaders
from vllm_kprune.serving.pruning.metrics import RequestReport, current_report
from vllm_kprune.serving.pruning.options import MIDDLEWARE

START = {"type": "http.response.start", "status": 200, "headers": [(b"a", b"b")]}
BODY = {"type": "http.response.body", "body": b"1", "more_body": True}


def answer(report: RequestReport | None, kind: str = "http") -> list[dict[str, Any]]:
    """The messages that pass through when the application renders what `report` says."""
    sent: list[dict[str, Any]] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        async def handler() -> None:  # vLLM handles a request in a task of its own
            mine = current_report.get()
            if report and mine:
                vars(mine).update(vars(report))

        await asyncio.create_task(handler())
        await send(dict(START))
        await send(dict(BODY))

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        return {"type": "http.disconnect"}

    asyncio.run(PruneHeaders(app)({"type": kind}, receive, send))
    return sent


def test_a_rendered_request_gets_three_headers_after_the_others() -> None:
    start, body = answer(RequestReport(True, original=100, kept=70, segments=2))
    assert start["headers"] == [
        (b"a", b"b"),
        (b"x-kprune-prompt-tokens-original", b"100"),
        (b"x-kprune-prompt-tokens-kept", b"70"),
        (b"x-kprune-segments-pruned", b"2"),
    ]
    assert body == BODY


def test_other_requests_pass_unchanged() -> None:
    assert answer(None) == [START, BODY]
    assert answer(RequestReport(True, 1, 1, 1), "websocket") == [START, BODY]


def test_requests_at_once_do_not_mix() -> None:
    async def both() -> list[Any]:
        async def app(scope: Any, receive: Any, send: Any) -> None:
            report = current_report.get()
            assert report
            report.rendered, report.kept = True, scope["number"]
            await asyncio.sleep(0.01 / scope["number"])
            await send(dict(START))

        async def ask(number: int) -> Any:
            sent: list[Any] = []

            async def send(message: Any) -> None:
                sent.append(message)

            await PruneHeaders(app)({"type": "http", "number": number}, send, send)  # type: ignore[arg-type]
            return dict(sent[0]["headers"])[b"x-kprune-prompt-tokens-kept"]

        return await asyncio.gather(*(ask(number) for number in (1, 2, 3)))

    assert asyncio.run(both()) == [b"1", b"2", b"3"]
    assert current_report.get() is None


def test_the_middleware_is_where_the_option_says() -> None:
    module, name = MIDDLEWARE.rsplit(".", 1)
    assert (PruneHeaders.__module__, PruneHeaders.__name__) == (module, name)
