"""How long-running work reports how far it is.

A function that can take more than about a second accepts a callback. It is called often, from the
thread that does the work, so it must be quick; an exception in it stops the work. How progress is
shown (a bar, log lines) is the caller's business.
"""

from collections.abc import Callable
from typing import TypeAlias

__all__ = ["BytesDone", "Progress", "ShareDone", "Tell", "silent"]

# (title of the step, share of the step that is done, 0 to 1). Steps come one after another; a step
# that has no measurable parts reports 0 when it begins.
Progress: TypeAlias = Callable[[str, float], None]

# Share of the whole that is done, 0 to 1, where there is only one step.
ShareDone: TypeAlias = Callable[[float], None]

# A line for the user, before or while the work goes on: a warning, for instance.
Tell: TypeAlias = Callable[[str], None]

# Number of bytes handled since the last call.
BytesDone: TypeAlias = Callable[[int], None]


def silent(step: str, share: float) -> None:
    """A `Progress` that shows nothing."""
