"""A planted slowdown of a fifth is found with its sign and size, even on a busy machine."""

from collections.abc import Iterator

import pytest
from support.mock_answers import Habits, times
from support.synthetic_report import metrics_of, reported

from vllm_kprune.compare.endpoint.messages import Answer
from vllm_kprune.compare.measurements import SuiteResult
from vllm_kprune.compare.report.document import MetricReport
from vllm_kprune.compare.suites.latency_metrics import Turn, measure, turn_of

ROUNDS, BATCH, TOKENS = 24, 4, 16


def turn(habits: Habits, number: int) -> Turn:
    answers = []
    for request in range(BATCH):
        took = times(habits, number, request, tokens=TOKENS)
        answers.append(
            Answer(
                text="x",
                completion_tokens=TOKENS,
                ttft_ms=took[0],
                itl_ms=tuple(took[1:]),
                e2e_ms=sum(took),
            )
        )
    return turn_of(answers, max(answer.e2e_ms or 0 for answer in answers) / 1000)


def latency(original: Habits, pruned: Habits) -> dict[str, MetricReport]:
    rounds = [(turn(original, number), turn(pruned, number)) for number in range(ROUNDS)]
    found, unavailable = measure(rounds, BATCH, "")
    assert unavailable == {}
    return metrics_of(reported(SuiteResult("latency", tuple(found))))


def judged(metrics: dict[str, MetricReport]) -> Iterator[tuple[str, MetricReport]]:
    for name, metric in metrics.items():
        if metric.better != "neither":
            yield name, metric


@pytest.mark.parametrize(
    ("ms_per_token", "verdict"), [(12.0, "worse"), (10.0 / 1.2, "better")], ids=["slower", "faster"]
)
def test_another_speed_is_found_with_its_sign_and_size(ms_per_token: float, verdict: str) -> None:
    metrics = latency(Habits(salt="a"), Habits(salt="b", ms_per_token=ms_per_token))
    for name, metric in judged(metrics):
        effect = metric.effect
        assert effect.value is not None and effect.low is not None and effect.high is not None
        slower = effect.value if metric.better == "lower" else 1 / effect.value
        assert slower == pytest.approx(ms_per_token / 10, rel=0.04), name
        assert not effect.low <= 1 <= effect.high, name
    assert metrics["decode_ratio"].verdict == verdict


def test_the_same_speed_on_a_busy_machine_is_neither_better_nor_worse() -> None:
    metrics = latency(Habits(salt="a"), Habits(salt="b"))
    assert {metric.verdict for _, metric in judged(metrics)}.isdisjoint({"better", "worse"})
