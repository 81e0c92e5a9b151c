"""Fake clients that answer as the mock endpoint does, without a network."""

from pathlib import Path
from typing import Any

from support.fake_clients import FakeClient, comparing
from support.mock_endpoint import Habits, reply
from vllm_kprune.compare.endpoint.messages import Abilities, Answer, Request
from vllm_kprune.compare.endpoint.wire import body_of, read_answer
from vllm_kprune.compare.measurements import SuiteResult
from vllm_kprune.compare.report.document import MetricReport, Report, build_report
from vllm_kprune.compare.run import Suite


def mock_client(name: str, habits: Habits, **more: Any) -> FakeClient:
    """A client of an endpoint with these habits."""

    def answer(request: Request) -> Answer:
        return read_answer(reply(habits, body_of(request, "mock", Abilities())), 1.0)

    return FakeClient(name, answer, **more)


def compared(
    suite: Suite, folder: Path, original: Habits, pruned: Habits, **options: Any
) -> SuiteResult:
    """What a suite finds about two endpoints."""
    clients = mock_client("original", original), mock_client("pruned", pruned)
    with comparing(folder, *clients, **options) as context:
        return suite.run(context)


def reported(*results: SuiteResult, seed: int = 0) -> Report:
    """The report of these results alone."""
    return build_report(results, endpoints=[], settings={}, versions={}, seed=seed, resamples=1000)


def metrics_of(report: Report) -> dict[str, MetricReport]:
    """All metrics by name."""
    return {metric.name: metric for suite in report.suites for metric in suite.metrics}
