"""The thread that ranks: away from the event loop, with a short queue and few CPU threads.

One thread, because a ranking uses several CPUs itself: two at once would finish no sooner. What
waits is bounded; a request that finds the queue full is not held up.
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
_LONGEST_WAIT_SECONDS = 10.0  # for its turn and the work: after that, pruning saves no time


class Busy(Exception):
    """The request would wait long, or has."""


class Worker:
    """Runs jobs in turn; a job is called with a function that tells whether to give up."""

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
        """Jobs that wait or run."""
        return self._pending

    async def run(self, job: Job[T]) -> T:
        """The job's result. When the caller is cancelled, a waiting job is dropped, a running one
        told; the same, and `Busy`, after `longest_wait` seconds; `Busy` when many are pending."""
        gone = Event()
        future = self._submit(job, gone)
        try:
            return await asyncio.wait_for(asyncio.wrap_future(future), self._longest_wait)
        except asyncio.CancelledError:
            gone.set()
            raise
        except TimeoutError:
            gone.set()
            raise Busy(f"not pruned within {self._longest_wait:g} s") from None

    def run_blocking(self, job: Job[T]) -> T:
        """The same, for a caller that has a thread of its own to wait in."""
        return self._submit(job, Event()).result()

    def close(self) -> None:
        """Drop what waits; the thread ends after the job that it has begun."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _submit(self, job: Job[T], gone: Event) -> Future[T]:
        with self._lock:
            if self._pending >= self._most_pending:
                raise Busy(f"{self._pending} requests are waiting to be pruned")
            self._pending += 1
        future = self._pool.submit(job, gone.is_set)
        future.add_done_callback(self._done)
        return future

    def _done(self, future: Future[Any]) -> None:
        with self._lock:
            self._pending -= 1


def _use_cpu_threads(number: int) -> None:
    """Limit what torch uses for calls from this thread; those of other threads keep theirs."""
    import torch

    torch.set_num_threads(number)
