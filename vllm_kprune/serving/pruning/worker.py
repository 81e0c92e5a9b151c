"""The thread that ranks, away from the event loop: a short queue and few CPU threads.

There is one thread because a ranking uses several CPUs itself: two at once would not finish sooner.
The queue is bounded, and a request that finds it full is not delayed.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Event, Lock
from typing import Any, TypeVar

__all__ = ["Busy", "Worker"]

T = TypeVar("T")
Job = Callable[[Callable[[], bool]], T]
_MOST_PENDING = 32
_LONGEST_WAIT_SECONDS = 10.0  # in the queue and in work: pruning saves no time after that


class Busy(Exception):
    """The request would have to wait for too long, or has waited for too long."""


class Worker:
    """Runs jobs one after the other. A job gets a function that says whether it should give up."""

    def __init__(
        self,
        cpu_threads: int,
        most_pending: int = _MOST_PENDING,
        longest_wait: float = _LONGEST_WAIT_SECONDS,
    ) -> None:
        self._most_pending, self._longest_wait = most_pending, longest_wait
        self._pending = 0
        self._lock = Lock()
        self._pool = ThreadPoolExecutor(
            1, "kprune-prune", initializer=_use_cpu_threads, initargs=(cpu_threads,)
        )

    @property
    def pending(self) -> int:
        """The number of jobs that are waiting or running."""
        return self._pending

    async def run(self, job: Job[T]) -> T:
        """Return the job's result.

        If the caller is cancelled, a waiting job is dropped and a running job is told to give up.
        The same happens after `longest_wait` seconds, and `Busy` is raised. Raises `Busy` at once
        if the queue is full.
        """
        gone = Event()
        future = self._submit(job, gone)
        try:
            # Giving up cancels `future`, too, which drops a job that still waits. A running thread
            # cannot be cancelled: its job asks `gone`.
            return await asyncio.wait_for(asyncio.wrap_future(future), self._longest_wait)
        except asyncio.CancelledError:
            gone.set()
            raise
        except TimeoutError:
            gone.set()
            raise Busy(f"pruning did not finish within {self._longest_wait:g} s") from None

    def run_blocking(self, job: Job[T]) -> T:
        """Do the same for a caller that can wait in its own thread; only a full queue is `Busy`."""
        # An event that nobody sets: nobody could ask this job to give up.
        return self._submit(job, Event()).result()

    def close(self) -> None:
        """Drop waiting jobs. The thread ends after the job that is running."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _submit(self, job: Job[T], gone: Event) -> Future[T]:
        with self._lock:
            if self._pending >= self._most_pending:
                raise Busy(f"{self._pending} requests are waiting to be pruned")
            self._pending += 1
        future = self._pool.submit(job, gone.is_set)
        # Outside of the lock, which `_done` takes: for a job that is done already it is called at
        # once. A job that was cancelled while it waited calls it, too, so its place is free again.
        future.add_done_callback(self._done)
        return future

    def _done(self, future: Future[Any]) -> None:
        with self._lock:
            self._pending -= 1


def _use_cpu_threads(number: int) -> None:
    """Limit the CPU threads of torch calls from this thread. Other threads keep theirs."""
    import torch

    torch.set_num_threads(number)
