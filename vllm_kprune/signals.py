"""Signals that end a process: they clean up as Ctrl-C does.

Python answers Ctrl-C with an exception, so that `with` blocks remove what is unfinished and stop
what they started. SIGTERM and a closed terminal end it at once, and leave everything behind.
"""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

__all__ = ["Terminated", "ended_by_signals"]

_SIGNALS = (signal.SIGHUP, signal.SIGTERM)


class Terminated(SystemExit):
    """A signal ended the process; the exit code is 128 + the signal, as shells report it."""


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """Let signals that end a process raise `Terminated`.

    What is ignored stays so: `nohup` does that. Does nothing outside the main thread, as Python
    allows handlers only there.
    """
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    taken = [number for number in _SIGNALS if before[number] is signal.SIG_DFL]
    try:
        for number in taken:
            signal.signal(number, _stop)
    except ValueError:
        taken = []
    try:
        yield
    finally:
        for number in taken:
            signal.signal(number, before[number])


def _stop(number: int, frame: FrameType | None) -> NoReturn:
    # A second one would interrupt the cleaning up.
    for one in _SIGNALS:
        signal.signal(one, signal.SIG_IGN)
    raise Terminated(128 + number)
