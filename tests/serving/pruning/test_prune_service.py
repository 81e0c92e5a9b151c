"""The pruner of a server: no request is lost, options are checked, everything is counted."""

import asyncio
import logging
from collections.abc import Callable
from threading import Event
from typing import Any

import pytest
from prometheus_client import REGISTRY
from support.prune_cases import LONG, LengthScores, pruning_of, tokens

from vllm_kprune.errors import KPruneError
from vllm_kprune.prompt.segments import MarkError, RequestTexts
from vllm_kprune.serving.pruning import service as prune_service
from vllm_kprune.serving.pruning.metrics import RequestReport, current_report
from vllm_kprune.serving.pruning.service import Prepared, PromptPruning
from vllm_kprune.serving.pruning.worker import Worker

pytestmark = pytest.mark.usefixtures("vllm_ready")

HALF = {"kprune_keep": 0.5}
MARKED = RequestTexts(prompt=f"<kprune>{LONG}</kprune>?")
PLAIN = [RequestTexts(prompt=f"{LONG}?")]


def prune(pruning: PromptPruning, texts: RequestTexts = MARKED, **options: Any) -> Prepared:
    extra = {f"kprune_{name}": value for name, value in options.items()}
    return asyncio.run(pruning.prune([texts], extra))


def metric(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(f"kprune_prune_{name}", labels) or 0.0


def requests(outcome: str, reason: str = "") -> float:
    return metric("requests_total", outcome=outcome, reason=reason)


def failing(error: Exception, **values: Any) -> PromptPruning:
    scorer = LengthScores()

    def fail(cancelled: Callable[[], bool]) -> None:
        raise error

    scorer.before = fail
    return pruning_of(scorer, **values)


def test_what_is_pruned_is_counted() -> None:
    pruning = pruning_of(LengthScores())
    before = [requests("pruned"), metric("seconds_count"), metric("segments_total")]
    prepared = prune(pruning, keep=0.5)
    assert [requests("pruned"), metric("seconds_count"), metric("segments_total")] == [
        number + 1 for number in before
    ]
    assert prepared.pruned
    assert prepared.pruned.tokens_before == tokens(LONG)
    original, kept = metric("original_tokens_total"), metric("kept_tokens_total")
    pruning.rendered(prepared, seen=30)
    assert metric("kept_tokens_total") == kept + 30
    assert metric("original_tokens_total") == original + 30 + prepared.pruned.dropped


def test_what_was_asked_for_and_not_done_is_counted_as_skipped() -> None:
    before = requests("skipped", "below_break_even")
    assert prune(pruning_of(LengthScores(), min_tokens=1000), keep=0.5).texts == PLAIN
    assert requests("skipped", "below_break_even") == before + 1
    assert prune(pruning_of(LengthScores(), min_tokens=1000), keep=0.5, min_tokens=1).pruned
    before = requests("skipped", "nothing_to_prune")
    chat = RequestTexts([{"role": "user", "content": LONG}])  # the last user message
    assert prune(pruning_of(LengthScores()), chat, keep=0.5).pruned is None
    assert requests("skipped", "nothing_to_prune") == before + 1


def test_a_request_that_asks_for_nothing_only_loses_its_marks() -> None:
    scorer = LengthScores()
    assert prune(pruning_of(scorer)) == Prepared(PLAIN)
    assert prune(PromptPruning(None)) == Prepared(PLAIN)
    assert prune(pruning_of(scorer, keep=0.5), keep="off") == Prepared(PLAIN)
    assert scorer.asked == []


def test_the_servers_keep_is_for_all_and_a_mark_asks_too() -> None:
    assert prune(pruning_of(LengthScores(), keep=0.5)).pruned
    marked = RequestTexts(prompt=f'<kprune keep="0.5">{LONG}</kprune>')
    assert prune(pruning_of(LengthScores()), marked).pruned
    assert prune(pruning_of(LengthScores()), marked, keep="off").pruned is None


@pytest.mark.parametrize("kind", [RuntimeError, MemoryError, KPruneError, KeyError])
def test_a_failure_sends_the_prompt_unpruned(
    kind: type[Exception], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prune_service.logger, "propagate", True)
    before = requests("failed", "error")
    pruning = failing(kind("no such page"))
    for _ in range(3):
        assert prune(pruning, keep=0.5) == Prepared(PLAIN)
    assert requests("failed", "error") == before + 3
    logged = [r for r in caplog.records if r.levelno == logging.WARNING]
    assert len(logged) == 1  # one of a kind per minute
    assert "no such page" in logged[0].getMessage()


def test_another_kind_of_failure_is_logged_too_and_the_same_after_a_minute(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prune_service.logger, "propagate", True)
    now = [1000.0]
    monkeypatch.setattr(prune_service.time, "monotonic", lambda: now[0])
    pruning = PromptPruning(None)
    seen = []
    for second, kind in ((0, "A"), (1, "B"), (59, "A"), (61, "A"), (62, "B")):
        now[0] = 1000.0 + second
        seen.append(pruning._should_log(kind))
    assert seen == [True, True, False, True, True]


@pytest.mark.parametrize("by", ["server", "request"])
def test_a_strict_request_fails_with_the_kind_of_error_and_no_path(by: str) -> None:
    from vllm.exceptions import GenerationError, RetryableRequestError

    pruning = failing(RuntimeError("/root/model is gone"), pruner_strict=by == "server")
    options = {"strict": "on"} if by == "request" else {}
    with pytest.raises(GenerationError, match=r"failed: RuntimeError$") as error:
        prune(pruning, keep=0.5, **options)
    assert not isinstance(error.value, RetryableRequestError)  # HTTP 500


def test_a_scorer_that_the_ranker_cannot_have_is_the_clients_mistake_and_reveals_no_path(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prune_service.logger, "propagate", True)
    pruning = pruning_of(LengthScores())
    assert pruning.ranker

    def make(name: str) -> LengthScores:
        raise KPruneError("/root/model has no config.json")

    monkeypatch.setattr(pruning.ranker.pruner, "_scorers", {})
    monkeypatch.setattr(pruning.ranker.pruner, "_make", make)
    with pytest.raises(KPruneError, match="scorer attention is not available") as error:
        prune(pruning, keep=0.5, scorer="attention")
    assert "/root" not in str(error.value)
    assert "/root/model" in caplog.text


def test_when_too_many_wait_a_prompt_is_sent_unpruned_or_to_be_tried_again() -> None:
    from vllm.exceptions import RetryableRequestError

    pruning = pruning_of(LengthScores())
    pruning.worker = Worker(1, most_pending=0)
    before = requests("failed", "busy")
    assert prune(pruning, keep=0.5) == Prepared(PLAIN)
    assert requests("failed", "busy") == before + 1
    with pytest.raises(RetryableRequestError, match="requests are waiting"):  # HTTP 503
        prune(pruning, keep=0.5, strict=1)


def test_a_cancelled_request_stops_ranking() -> None:
    begun, stopped = Event(), Event()

    def work(cancelled: Callable[[], bool]) -> None:
        begun.set()
        while not cancelled():
            stopped.wait(0.005)
        stopped.set()
        raise RuntimeError("cancelled")

    scorer = LengthScores()
    scorer.before = work
    before = requests("cancelled")

    async def run() -> None:
        task = asyncio.create_task(pruning_of(scorer).prune([MARKED], HALF))
        assert await asyncio.to_thread(begun.wait, 20)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await asyncio.to_thread(stopped.wait, 20)

    asyncio.run(run())
    assert requests("cancelled") == before + 1


def test_the_blocking_way_gives_the_same() -> None:
    pruning = pruning_of(LengthScores())
    assert pruning.prune_blocking([MARKED], HALF).texts == prune(pruning, keep=0.5).texts
    assert failing(OSError("gone")).prune_blocking([MARKED], HALF) == Prepared(PLAIN)


@pytest.mark.parametrize("keep", [0.5, "off"])
def test_malformed_marks_are_the_clients_mistake_in_any_case(keep: Any) -> None:
    for pruning in (pruning_of(LengthScores()), PromptPruning(None)):
        options = {"keep": keep} if pruning.settings else {}
        with pytest.raises(MarkError, match="not closed"):
            prune(pruning, RequestTexts(prompt="<kprune>abc"), **options)
        whole = RequestTexts(prompt="<kprune>abc")
        assert prune(pruning, whole, marks="off").texts == [whole]


def test_a_request_on_a_server_without_pruner_names_the_missing_option() -> None:
    with pytest.raises(KPruneError, match=r"kprune_keep: .* it needs --kprune-input-pruner MODEL"):
        prune(PromptPruning(None), keep=0.5)


def test_a_report_adds_up_the_prompts_of_a_request() -> None:
    pruning = pruning_of(LengthScores())
    prepared = prune(pruning, keep=0.5)
    assert prepared.pruned
    report = RequestReport()
    token = current_report.set(report)
    pruning.rendered(prepared, seen=10)
    pruning.rendered(Prepared(PLAIN), seen=5)
    current_report.reset(token)
    dropped = prepared.pruned.dropped
    assert report == RequestReport(True, original=15 + dropped, kept=15, segments=1)
