"""The ranking thread: work that nobody waits for is dropped or stopped, and the queue is short."""

import asyncio
from collections.abc import Callable, Iterator
from threading import Event

import pytest
import torch

from vllm_kprune.serving.pruning.worker import Busy, Worker

SECONDS = 20


@pytest.fixture
def worker() -> Iterator[Worker]:
    made = Worker(cpu_threads=1, most_pending=2)
    yield made
    made.close()


class Held:
    """A job that says when it has begun, and ends when it is released or told to give up."""

    def __init__(self) -> None:
        self.begun, self.let_go, self.gave_up = Event(), Event(), Event()

    def __call__(self, cancelled: Callable[[], bool]) -> str:
        self.begun.set()
        while not self.let_go.wait(0.005):
            if cancelled():
                self.gave_up.set()
                raise RuntimeError("gave up")
        return "done"


async def begun(job: Held) -> None:
    assert await asyncio.to_thread(job.begun.wait, SECONDS)


def test_a_job_gives_its_result_or_its_error(worker: Worker) -> None:
    def fail(cancelled: Callable[[], bool]) -> None:
        raise LookupError("broken")

    assert asyncio.run(worker.run(lambda cancelled: 7)) == 7
    assert worker.run_blocking(lambda cancelled: 8) == 8
    with pytest.raises(LookupError, match="broken"):
        asyncio.run(worker.run(fail))
    assert worker.pending == 0


def test_a_running_job_whose_caller_left_is_told_to_stop(worker: Worker) -> None:
    async def run() -> None:
        job = Held()
        task = asyncio.create_task(worker.run(job))
        await begun(job)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await asyncio.to_thread(job.gave_up.wait, SECONDS)
        assert await worker.run(lambda cancelled: cancelled()) is False

    asyncio.run(run())


def test_a_job_that_takes_too_long_is_told_to_stop_and_the_caller_goes_on() -> None:
    async def run() -> None:
        impatient = Worker(1, longest_wait=0.05)
        job = Held()
        with pytest.raises(Busy, match=r"pruning did not finish within 0\.05 s"):
            await impatient.run(job)
        assert await asyncio.to_thread(job.gave_up.wait, SECONDS)
        impatient.close()

    asyncio.run(run())


def test_a_waiting_job_whose_caller_left_never_begins(worker: Worker) -> None:
    async def run() -> None:
        first, second = Held(), Held()
        running = asyncio.create_task(worker.run(first))
        await begun(first)
        waiting = asyncio.create_task(worker.run(second))
        await asyncio.sleep(0)
        assert worker.pending == 2
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert worker.pending == 1
        first.let_go.set()
        assert await running == "done"
        await worker.run(lambda cancelled: None)
        assert not second.begun.is_set()

    asyncio.run(run())


def test_a_full_queue_turns_away_at_once(worker: Worker) -> None:
    async def run() -> None:
        held = [Held(), Held()]
        tasks = [asyncio.create_task(worker.run(job)) for job in held]
        await begun(held[0])
        with pytest.raises(Busy, match="2 requests are waiting"):
            await worker.run(lambda cancelled: None)
        for job in held:
            job.let_go.set()
        assert await asyncio.gather(*tasks) == ["done", "done"]
        assert await worker.run(lambda cancelled: 1) == 1

    asyncio.run(run())


def test_the_event_loop_goes_on_while_a_job_runs(worker: Worker) -> None:
    async def run() -> int:
        job = Held()
        task = asyncio.create_task(worker.run(job))
        await begun(job)
        turns = 0
        for _ in range(50):
            await asyncio.sleep(0)
            turns += 1
        job.let_go.set()
        await task
        return turns

    assert asyncio.run(run()) == 50


def test_only_the_ranking_thread_is_limited_in_cpu_threads() -> None:
    before = torch.get_num_threads()
    wanted = before + 1  # whatever the machine has, it differs
    limited = Worker(cpu_threads=wanted)
    assert limited.run_blocking(lambda cancelled: torch.get_num_threads()) == wanted
    limited.close()
    assert torch.get_num_threads() == before
