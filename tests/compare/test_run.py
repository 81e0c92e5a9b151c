"""Asking both sides alternately, in an order drawn from the seed, and resuming a stopped run."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.mock_answers import Habits
from support.mock_endpoint import MockEndpoint

from vllm_kprune.compare.asking import Task, answered, ask_both
from vllm_kprune.compare.conclude import conclude
from vllm_kprune.compare.connect import Address, connect
from vllm_kprune.compare.endpoint.messages import Request
from vllm_kprune.compare.measurements import Measurement, Metric, SuiteResult
from vllm_kprune.compare.options import CommonOptions
from vllm_kprune.compare.run import Context, Suite, run_suites
from vllm_kprune.errors import KPruneError

TASKS = [
    Task(f"task {n}", Request("chat", messages=({"role": "user", "content": f"질문 {n}"},)))
    for n in range(20)
]


@contextmanager
def running(
    original: MockEndpoint, pruned: MockEndpoint, folder: Path, **options: Any
) -> Iterator[Context]:
    """A run whose probing is not counted in `asked`."""
    addresses = Address(original.url, name="a"), Address(pruned.url, name="b")
    with connect(*addresses, CommonOptions(**options), folder, first_wait=0.001) as context:
        for mock in (original, pruned):
            mock.asked.clear()
        yield context


@pytest.fixture
def mocks() -> Iterator[tuple[MockEndpoint, MockEndpoint]]:
    with MockEndpoint(Habits("large")) as original, MockEndpoint(Habits("small")) as pruned:
        yield original, pruned


def order(mock: MockEndpoint) -> list[str]:
    return [body["messages"][0]["content"] for body in mock.asked]


def test_answers_are_in_the_order_of_the_tasks_and_of_the_sides(
    mocks: tuple[MockEndpoint, MockEndpoint], tmp_path: Path
) -> None:
    with running(*mocks, tmp_path) as context:
        pairs = ask_both(context, "stability", TASKS)
    assert all(original.text == pruned.text for original, pruned in pairs)
    assert len({original.text for original, _ in pairs}) > 1
    assert {body["model"] for body in mocks[0].asked} == {"large"}
    assert {body["model"] for body in mocks[1].asked} == {"small"}


@pytest.mark.slow
def test_both_sides_get_the_same_tasks_in_the_same_order_which_is_the_seeds(
    mocks: tuple[MockEndpoint, MockEndpoint], tmp_path: Path
) -> None:
    orders = []
    for number, seed in enumerate((0, 0, 1)):
        with running(*mocks, tmp_path / str(number), seed=seed, concurrency=1) as context:
            ask_both(context, "stability", TASKS)
            assert order(mocks[0]) == order(mocks[1])
            orders.append(order(mocks[0]))
    assert orders[0] == orders[1] != orders[2]
    assert orders[0] != [f"질문 {n}" for n in range(20)]


def test_both_sides_have_as_many_requests_as_are_allowed_at_the_same_time(tmp_path: Path) -> None:
    most, running_now = 0, [0, 0]
    with MockEndpoint() as mock:
        addresses = Address(mock.url), Address(mock.url)
        with connect(*addresses, CommonOptions(concurrency=3), tmp_path) as context:
            for side, client in enumerate(context.clients):
                ask = client.ask

                async def spy(request: Request, side: int = side, ask: Any = ask) -> Any:
                    nonlocal most
                    running_now[side] += 1
                    most = max(most, sum(running_now))
                    answer = await ask(request)
                    running_now[side] -= 1
                    return answer

                client.ask = spy  # type: ignore[method-assign]
            ask_both(context, "stability", TASKS)
    assert most == 6


def test_with_alone_each_server_has_one_request_and_both_have_it_at_the_same_time(
    mocks: tuple[MockEndpoint, MockEndpoint], tmp_path: Path
) -> None:
    with running(*mocks, tmp_path, concurrency=8) as context:
        for mock in mocks:
            mock.most_at_once = 0
        now: list[int] = []
        together: list[int] = []
        for side, client in enumerate(context.clients):
            ask = client.ask

            async def spy(request: Request, side: int = side, ask: Any = ask) -> Any:
                now.append(side)
                together.append(len(now))
                try:
                    return await ask(request)
                finally:
                    now.remove(side)

            client.ask = spy  # type: ignore[method-assign]
        pairs = ask_both(context, "stability", TASKS, alone=True)
    assert all(original.text == pruned.text for original, pruned in pairs)
    assert mocks[0].most_at_once == mocks[1].most_at_once == 1
    assert together == [1, 2] * len(TASKS)


def test_an_error_of_one_side_of_two_that_are_asked_together_is_told_as_it_is(
    mocks: tuple[MockEndpoint, MockEndpoint], tmp_path: Path
) -> None:
    with running(*mocks, tmp_path) as context:

        async def full(request: Request) -> Any:
            raise KPruneError("no space left on the disk")

        context.clients[1].ask = full  # type: ignore[method-assign]
        with pytest.raises(KPruneError, match="no space left on the disk"):
            ask_both(context, "stability", TASKS, alone=True)


def test_a_second_run_asks_nothing_again(
    mocks: tuple[MockEndpoint, MockEndpoint], tmp_path: Path
) -> None:
    with running(*mocks, tmp_path) as context:
        first = ask_both(context, "stability", TASKS)
    with running(*mocks, tmp_path) as context:
        assert ask_both(context, "stability", TASKS) == first
        assert mocks[0].asked == mocks[1].asked == []


def test_a_changed_prompt_is_not_answered_from_the_journal(
    mocks: tuple[MockEndpoint, MockEndpoint], tmp_path: Path
) -> None:
    with running(*mocks, tmp_path) as context:
        ask_both(context, "stability", TASKS[:2])
    changed = [Task(TASKS[0].key, TASKS[5].request), TASKS[1]]
    with running(*mocks, tmp_path) as context:
        ask_both(context, "stability", changed)
        assert order(mocks[0]) == ["질문 5"]


def test_a_request_that_was_refused_is_kept_as_failed(tmp_path: Path) -> None:
    refused = replace(TASKS[7], request=replace(TASKS[7].request, extra={"top_k": 1}))
    tasks = [*TASKS[:7], refused, *TASKS[8:]]
    with MockEndpoint() as original, MockEndpoint(Habits(refusing=("top_k",))) as pruned:
        with running(original, pruned, tmp_path) as context:
            pairs = ask_both(context, "stability", tasks)
        with running(original, pruned, tmp_path) as context:
            assert ask_both(context, "stability", tasks) == pairs
            assert pruned.asked == []
    assert [n for n, (_, answer) in enumerate(pairs) if answer.error] == [7]


def test_an_answer_that_failed_otherwise_is_asked_for_again_by_the_next_run(
    tmp_path: Path,
) -> None:
    with MockEndpoint() as original, MockEndpoint(Habits(poison="질문 7")) as pruned:
        with running(original, pruned, tmp_path) as context:
            pairs = ask_both(context, "stability", TASKS)
            asked = len(pruned.asked)
            assert ask_both(context, "stability", TASKS) == pairs
            assert len(pruned.asked) == asked  # not twice in one run
        pruned.habits = Habits()
        with running(original, pruned, tmp_path) as context:
            again = ask_both(context, "stability", TASKS)
            assert order(pruned) == ["질문 7"]
    assert len(answered(TASKS, again)) == 20
    assert [n for n, (_, answer) in enumerate(pairs) if answer.error] == [7]
    assert len(answered(TASKS, pairs)) == 19


@dataclass(frozen=True)
class Lengths(Suite):
    """A simple suite: the lengths of answers."""

    name: str = "lengths"
    help: str = "lengths of answers"
    metrics: tuple[str, ...] = ("length",)

    def run(self, context: Context) -> SuiteResult:
        pairs = answered(TASKS, ask_both(context, self.name, TASKS))
        sides = [np.array([[len(pair[side].text)] for _, pair in pairs], float) for side in (0, 1)]
        metric = Metric("length", "length", "characters", "higher", 0.1)
        items = tuple(task.key for task, _ in pairs)
        found = (Measurement(metric, items, *sides),) if items else ()
        return SuiteResult(self.name, found)


def test_a_server_that_dies_midway_leaves_what_was_done_and_the_rest_for_later(
    tmp_path: Path,
) -> None:
    second = Lengths("later")
    with MockEndpoint() as original:
        with MockEndpoint(Habits(dies_after=18)) as pruned:
            with running(original, pruned, tmp_path) as context:
                pruned.habits = Habits(dies_after=8)
                outcome = run_suites(context, [Lengths(), second])
            assert outcome.died is not None and "pruned" in outcome.died
        assert len(outcome.results[0].measurements[0].items) == 8
        assert "incomplete" in outcome.results[0].notes[0]
        assert outcome.results[1].unavailable["*"] == outcome.died
        with MockEndpoint() as pruned, running(original, pruned, tmp_path) as context:
            outcome = run_suites(context, [Lengths(), second])
            assert outcome.died is None
            assert len(outcome.results[0].measurements[0].items) == 20
            assert len(pruned.asked) == 12 + 20


def test_many_failed_answers_are_the_first_thing_that_is_told(tmp_path: Path) -> None:
    with MockEndpoint() as original, MockEndpoint() as pruned:
        with running(original, pruned, tmp_path / "many") as context:
            pruned.habits = Habits(refusing=("messages",))
            (result,) = run_suites(context, [Lengths()]).results
        pruned.habits = Habits(poison="질문 19")
        with running(original, pruned, tmp_path / "few") as context:
            (few,) = run_suites(context, [Lengths()]).results
    assert result.notes[0].startswith("WARNING: 20 of 40 answers failed")
    assert "(20 of them: HTTP 400: unknown parameter: messages)" in result.notes[0]
    assert few.notes == ()


@pytest.mark.parametrize("status", [402, 404])
def test_a_run_ends_where_an_endpoint_has_no_credit_or_no_model(
    status: int, tmp_path: Path
) -> None:
    with MockEndpoint() as original, MockEndpoint() as pruned:
        with running(original, pruned, tmp_path) as context:
            pruned.habits = Habits(status=status)
            outcome = run_suites(context, [Lengths()])
        assert outcome.died is not None and f"HTTP {status}" in outcome.died
        assert len(pruned.asked) <= CommonOptions().concurrency
        pruned.habits = Habits()
        with running(original, pruned, tmp_path) as context:
            outcome = run_suites(context, [Lengths()])
    assert outcome.died is None
    assert len(outcome.results[0].measurements[0].items) == 20


def test_a_server_that_is_not_there_is_the_users_mistake(tmp_path: Path) -> None:
    with MockEndpoint() as original, MockEndpoint() as pruned:
        pruned.die()
        with (
            pytest.raises(KPruneError, match="is the server running"),
            running(original, pruned, tmp_path),
        ):
            pass


def test_other_settings_are_found_before_anything_is_asked(
    mocks: tuple[MockEndpoint, MockEndpoint], tmp_path: Path
) -> None:
    with running(*mocks, tmp_path) as context:
        ask_both(context, "stability", TASKS[:1])
    with (
        pytest.raises(KPruneError, match="max_tokens was None, now 64"),
        running(*mocks, tmp_path, max_tokens=64),
    ):
        pass
    assert mocks[0].asked != []  # of the first run: nothing was cleared, nothing asked
    assert len(mocks[0].asked) == 1


def test_names_and_lists_that_are_too_long_for_a_report_are_cut(
    mocks: tuple[MockEndpoint, MockEndpoint], tmp_path: Path
) -> None:
    values = np.zeros((2, 1))
    names = ["x" * 250 + end for end in ("a", "b")]
    measurements = tuple(
        Measurement(Metric(name, name, "share", "higher", 0.1), ("1", "2"), values, values)
        for name in names
    )
    unavailable = {f"{'y' * 300}{n}": "why" for n in range(600)}
    notes = tuple(f"note {n}" for n in range(300))
    result = SuiteResult("lengths", measurements, (), unavailable, notes)
    with running(*mocks, tmp_path) as context:
        (suite,) = conclude(context, [result]).suites
    assert len({metric.name for metric in suite.metrics}) == 2
    assert len(suite.unavailable) == 500
    assert len(suite.notes) == 200 and suite.notes[-1] == "and 101 more notes"
