"""The thread that ranks, away from the event loop: a short queue and few CPU threads.

There is one thread because a ranking uses several CPUs itself: two at once would not finish sooner.
The queue is bounded, and a request that finds it full is not delayed. Nobody holds up the others:
a job waits longer the more it costs, and where there is no room left, the dearest one goes.
"""

import asyncio
import itertools
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from threading import Event, Lock
from typing import Any, TypeVar

__all__ = ["Busy", "Worker"]

T = TypeVar("T")
Job = Callable[[Callable[[], bool]], T]
_MOST_PENDING = 32
_LONGEST_WAIT_SECONDS = 10.0  # in the queue and in work: pruning saves no time after that
# A job of a second lets those of no cost go first that come in the next four seconds. It is behind
# none that come later, so that it has its turn, whatever else comes.
_SECONDS_BEHIND = 4.0


class Busy(Exception):
    """The request would have to wait for too long, or has waited for too long."""


@dataclass(order=True)
class _Waiting:
    """Jobs are done in the order of `due`; equal ones as they came."""

    due: float
    number: int
    job: Job[Any] = field(compare=False)
    gone: Event = field(compare=False)
    future: Future[Any] = field(compare=False, default_factory=Future)


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
        self._waiting: list[_Waiting] = []
        self._numbers = itertools.count()
        self._lock = Lock()
        self._pool = ThreadPoolExecutor(
            1, "kprune-prune", initializer=_use_cpu_threads, initargs=(cpu_threads,)
        )

    @property
    def pending(self) -> int:
        """The number of jobs that are waiting or running."""
        return self._pending

    async def run(self, job: Job[T], seconds: float = 0.0) -> T:
        """Return the job's result; `seconds` is about how long it takes.

        If the caller is cancelled, a waiting job is dropped and a running job is told to give up.
        The same happens after `longest_wait` seconds, and `Busy` is raised. Raises `Busy` also if
        the queue is full: at once, or when a cheaper job needs the place.
        """
        gone = Event()
        future = self._submit(job, gone, seconds)
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

    def run_blocking(self, job: Job[T], seconds: float = 0.0) -> T:
        """Do the same for a caller that can wait in its own thread; only a full queue is `Busy`."""
        # An event that nobody sets: nobody could ask this job to give up.
        return self._submit(job, Event(), seconds).result()

    def close(self) -> None:
        """Drop waiting jobs. The thread ends after the job that is running."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        with self._lock:
            dropped = list(self._waiting)
        for one in dropped:
            one.future.cancel()

    def _submit(self, job: Job[T], gone: Event, seconds: float) -> Future[T]:
        due = time.monotonic() + _SECONDS_BEHIND * seconds
        one, dearest = _Waiting(due, next(self._numbers), job, gone), None
        with self._lock:
            if self._pending >= self._most_pending:
                dearest = max(self._waiting, default=None)
                if dearest is None or dearest < one:
                    raise Busy(f"{self._pending} requests are waiting to be pruned")
                self._waiting.remove(dearest)
            self._pending += 1
            self._waiting.append(one)
        # Outside of the lock, which `_done` takes: for a job that is done already it is called at
        # once. A job that was cancelled while it waited calls it, too, so its place is free again.
        one.future.add_done_callback(partial(self._done, one))
        # False: its caller has left in this moment.
        if dearest and dearest.future.set_running_or_notify_cancel():
            dearest.future.set_exception(Busy("cheaper requests are waiting to be pruned"))
        self._pool.submit(self._run_next)
        return one.future

    def _run_next(self) -> None:
        with self._lock:
            if not self._waiting:  # its caller has left
                return
            one = min(self._waiting)
            self._waiting.remove(one)
        if not one.future.set_running_or_notify_cancel():
            return
        try:
            one.future.set_result(one.job(one.gone.is_set))
        except BaseException as error:
            one.future.set_exception(error)

    def _done(self, one: _Waiting, future: Future[Any]) -> None:
        with self._lock:
            self._pending -= 1
            if one in self._waiting:
                self._waiting.remove(one)


def _use_cpu_threads(number: int) -> None:
    """Limit the CPU threads of torch calls from this thread. Other threads keep theirs."""
    import torch

    torch.set_num_threads(number)
