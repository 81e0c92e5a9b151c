"""The suite `latency`: turns, their metrics, and the reasons given when a server fails."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.mock_endpoint import MockClient, Reply, run_suite

from vllm_kprune.compare.endpoint.messages import Answer, Endpoint, EndpointDied, Request
from vllm_kprune.compare.measurements import SuiteResult
from vllm_kprune.compare.suites import latency
from vllm_kprune.compare.suites.latency import Latency
from vllm_kprune.compare.suites.latency_metrics import Turn, measure, turn_of

TIMES = st.floats(0.1, 1000)


def answer(ms: float, tokens: int = 4) -> Answer:
    """An answer of a server that takes `ms` for each token, including the first one."""
    gaps = (ms,) * (tokens - 1)
    return Answer(completion_tokens=tokens, ttft_ms=ms, itl_ms=gaps, e2e_ms=tokens * ms)


def run(
    folder: Path, monkeypatch: pytest.MonkeyPatch, original: Reply, pruned: Reply, **options: Any
) -> tuple[SuiteResult, list[tuple[str, Request]]]:
    """The result for two servers, and the requests that each of them got, in order."""
    asked: list[tuple[str, Request]] = []
    replies = {"original": original, "pruned": pruned}

    def client(name: str, concurrency: int) -> MockClient:
        assert concurrency in options["batches"]  # a whole round goes out at once

        def reply(request: Request) -> Answer:
            asked.append((name, request))
            return replies[name](request)

        return MockClient(name, reply)

    monkeypatch.setattr(latency, "SETTLE_SECONDS", 0.0)
    clients = [MockClient(name, replies[name]) for name in replies]
    for one in clients:
        one.of_batches = partial(client, one.endpoint.name)
    return run_suite(Latency(), folder, *clients, **options), asked


@given(st.lists(TIMES, min_size=1, max_size=4), st.lists(TIMES, min_size=1, max_size=4))
def test_a_server_against_itself_has_the_same_features(one: list[float], two: list[float]) -> None:
    turns = [turn_of([answer(ms) for ms in group], seconds=1.0) for group in (one, two)]
    found, reasons = measure([(turn, turn) for turn in turns], batch=1, suffix="")
    assert not reasons
    for measurement in found:
        assert measurement.pruned is not None
        assert np.array_equal(measurement.original, measurement.pruned, equal_nan=True)


@given(st.lists(st.lists(TIMES, min_size=2, max_size=2), min_size=1, max_size=5), st.floats(0.5, 4))
def test_a_server_that_is_faster_by_a_factor_has_that_ratio(
    rounds: list[list[float]], factor: float
) -> None:
    turns = [
        (
            turn_of([answer(ms) for ms in row], seconds=sum(row)),
            turn_of([answer(ms / factor) for ms in row], seconds=sum(row) / factor),
        )
        for row in rounds
    ]
    found = {m.metric.name: m for m in measure(turns, batch=2, suffix="@2")[0]}
    decode = found["decode_ratio@2"]
    assert decode.pruned == pytest.approx(factor * decode.original)
    mean = found["ttft_mean@2"]
    assert mean.original[:, 0] == pytest.approx(factor * mean.pruned[:, 0])
    assert np.array_equal(mean.original[:, 1], mean.pruned[:, 1])
    throughput = found["throughput@2"]
    assert np.array_equal(throughput.original[:, 0], throughput.pruned[:, 0])


def test_decode_speed_is_of_all_sequences_together() -> None:
    turn = turn_of([answer(10.0), answer(10.0), answer(30.0, tokens=2)], seconds=1.0)
    assert turn.decode_rate == pytest.approx(100 + 100 + 100 / 3)
    assert turn.tokens == 10


def test_the_sides_take_turns_and_get_the_same_new_prompts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, asked = run(
        tmp_path,
        monkeypatch,
        lambda r: answer(2.0),
        lambda r: answer(1.0),
        batches=(1, 2),
        rounds=3,
    )
    names = [name[0] for name, _ in asked]
    assert "".join(names) == "op" + "oppoop" + "oopp" + "ooppppoooopp"
    texts = {
        side: [r.prompt for name, r in asked if name == side] for side in ("original", "pruned")
    }
    assert texts["original"] == texts["pruned"]
    assert len(set(texts["original"])) == len(texts["original"])  # no prefix cache knows one
    assert all(request.stream and request.extra == {"ignore_eos": True} for _, request in asked)
    first = found.measurements[0]
    assert first.metric.name == "decode_ratio" and len(first.items) == 3
    assert (first.pruned / first.original).tolist() == [[2.0]] * 3
    assert len({m.metric.name for m in found.measurements}) == len(found.measurements) == 28
    details = {m.metric.aggregate for m in found.measurements if m.metric.detail}
    assert details == {"p50", "p95", "p99"}


def test_a_resumed_run_measures_only_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = iter(range(5))  # two to warm up, a round and a half

    def dies(request: Request) -> Answer:
        if next(left, None) is None:
            raise EndpointDied(Endpoint("pruned", "http://127.0.0.1:1/v1", "m"), "gone")
        return answer(1.0)

    options: dict[str, Any] = {"batches": (1,), "rounds": 3}
    broken, _ = run(tmp_path, monkeypatch, dies, dies, **options)
    assert len(broken.measurements[0].items) == 1
    whole, asked = run(
        tmp_path, monkeypatch, lambda r: answer(1.0), lambda r: answer(1.0), **options
    )
    assert len(whole.measurements[0].items) == 3
    assert len(asked) == 2 + 4
    again, asked = run(tmp_path, monkeypatch, dies, dies, **options)
    assert not asked
    for a, b in zip(whole.measurements, again.measurements, strict=True):
        assert np.array_equal(a.original, b.original, equal_nan=True)


def test_rounds_with_a_failed_request_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, _ = run(
        tmp_path,
        monkeypatch,
        lambda r: answer(1.0),
        lambda r: Answer(error="HTTP 500"),
        batches=(1,),
        rounds=2,
    )
    assert found.measurements == ()
    assert found.unavailable == {
        "decode_ratio": "in no round were all requests answered at the first attempt"
    }


def test_a_server_that_sends_everything_at_once_has_no_times_of_tokens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Answer(completion_tokens=4, e2e_ms=5.0)
    found, _ = run(tmp_path, monkeypatch, lambda r: whole, lambda r: whole, batches=(1,), rounds=2)
    names = {m.metric.name for m in found.measurements}
    assert names == {"throughput", "e2e_mean", "e2e_p50", "e2e_p95", "e2e_p99"}
    assert "decode_ratio" in found.unavailable and "ttft_mean" in found.unavailable


def test_tokens_that_come_in_bursts_still_have_a_speed() -> None:
    burst = Answer(completion_tokens=5, ttft_ms=1.0, itl_ms=(0.001, 0.0, 0.0, 8.0), e2e_ms=9.0)
    assert turn_of([burst], seconds=1.0).decode_rate == pytest.approx(500, rel=1e-3)


def test_what_tells_nothing_of_tokens_has_no_speed() -> None:
    at_once = Answer(completion_tokens=3, ttft_ms=1.0, itl_ms=(0.0, 0.0), e2e_ms=1.0)
    assert np.isnan(turn_of([at_once], seconds=1.0).decode_rate)
    assert np.isnan(Turn(seconds=1.0).decode_rate)


def test_a_server_that_sends_several_tokens_in_a_piece_has_no_times_of_tokens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bunched = "streams several tokens per chunk"
    found, _ = run(
        tmp_path,
        monkeypatch,
        lambda r: answer(1.0),
        lambda r: Answer(completion_tokens=4, ttft_ms=1.0, e2e_ms=4.0, untimed=bunched),
        batches=(1,),
        rounds=2,
    )
    assert found.unavailable["decode_ratio"] == f"an endpoint {bunched}"
    assert found.unavailable["itl_mean"] == f"an endpoint {bunched}"
    assert {"throughput", "ttft_mean"} <= {m.metric.name for m in found.measurements}


def test_without_counts_of_tokens_there_is_no_throughput(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, _ = run(
        tmp_path,
        monkeypatch,
        lambda r: answer(1.0),
        lambda r: Answer(ttft_ms=1.0, itl_ms=(1.0,), e2e_ms=4.0),
        batches=(1,),
        rounds=2,
    )
    assert "how many tokens" in found.unavailable["throughput"]
    assert "e2e_mean" in {m.metric.name for m in found.measurements}


def test_rounds_with_a_request_that_waited_are_measured_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits = iter((0, 0, 3))  # warm-up, first round, second round

    def limited(request: Request) -> Answer:
        return replace(answer(1.0), retries=next(waits, 0))

    found, asked = run(
        tmp_path, monkeypatch, lambda r: answer(1.0), limited, batches=(1,), rounds=3
    )
    assert len(found.measurements[0].items) == 3
    assert len(asked) == 2 + 2 * (3 + 1)
    assert len({request.prompt for _, request in asked}) == 1 + 3 + 1  # new ones, for the caches
    assert any("1 rounds were repeated" in note for note in found.notes)


def test_rounds_that_always_wait_are_left_out_and_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"batches": (1,), "rounds": 2}
    found, _ = run(
        tmp_path,
        monkeypatch,
        lambda r: answer(1.0),
        lambda r: replace(answer(1.0), retries=1),
        **options,
    )
    assert found.measurements == ()
    assert any("2 of 2 rounds are left out" in note for note in found.notes)
    found, _ = run(tmp_path, monkeypatch, lambda r: answer(1.0), lambda r: answer(1.0), **options)
    assert len(found.measurements[0].items) == 2
