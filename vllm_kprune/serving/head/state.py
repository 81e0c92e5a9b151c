"""What the hooks around vLLM tell each other about a pruned head; imports nothing of vLLM.

While a model is loaded: the rows of its head. In a step: the profile of each row of the logits that
the target model is asked for next.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from vllm_kprune.checkpoint.head import HeadRows
from vllm_kprune.errors import KPruneError
from vllm_kprune.serving.request_options import HEAD_KEY

__all__ = [
    "ATTRIBUTE",
    "Loading",
    "asking",
    "current",
    "loading",
    "profile_of",
    "serve_profiles",
    "serves_several",
    "take_profiles",
]


# Where a layer has its `KeptHead`: among its plain attributes, not its submodules, which LoRA and
# quantisation look through.
ATTRIBUTE = "_kprune_head"


@dataclass
class Loading:
    """A model that is being loaded: the rows of its head, and the layers that were made for them.

    `vocabulary` is the number of rows of the original head. `tied`: it is the embedding's weight.
    """

    rows: HeadRows
    vocabulary: int
    tied: bool
    layers: list[Any] = field(default_factory=list)


_current: ContextVar[Loading | None] = ContextVar("kprune_loading", default=None)


def current() -> Loading | None:
    """What is being loaded with a pruned head; None if nothing is."""
    return _current.get()


@contextmanager
def loading(rows: HeadRows, vocabulary: int, tied: bool) -> Iterator[Loading]:
    """Within the block, the head of the model that is made is pruned."""
    rows = rows.within(vocabulary)
    if not len(rows.ids):
        raise KPruneError(
            f"--kprune-head: none of the kept tokens is among the model's {vocabulary} rows; its "
            "tokenizer and its weights do not fit each other"
        )
    state = Loading(rows, vocabulary, tied)
    token = _current.set(state)
    try:
        yield state
    finally:
        _current.reset(token)


# The names of the profiles, the default first, of a server that has a pruned head.
_served: list[str] = []
# Gives the profile of each row of the target's logits, for one call of the target's head.
_asked: ContextVar[Callable[[], Sequence[int]] | None] = ContextVar("kprune_asked", default=None)


def serve_profiles(names: Sequence[str]) -> None:
    """Note the profiles that the requests of this process's engine can choose from."""
    _served[:] = names


def serves_several() -> bool:
    """Can requests choose between profiles? If not, steps need not be watched."""
    return len(_served) > 1


def profile_of(extra_args: Any) -> int:
    """The number of the profile that a request has; names were checked when it was admitted."""
    name = (extra_args or {}).get(HEAD_KEY)
    return _served.index(name) if name in _served else 0


@contextmanager
def asking(profiles: Callable[[], Sequence[int]]) -> Iterator[None]:
    """Within the block, the first logits that a head is asked for have these profiles by row.

    `profiles` is called when they are asked for. Later ones in the same step are for prompts and
    drafters, which no request chooses for.
    """
    token = _asked.set(profiles)
    try:
        yield
    finally:
        _asked.reset(token)


def take_profiles(rows: int) -> Sequence[int] | None:
    """The profiles of the logits asked for now; None: no request's, or there are no rows.

    Raises `RuntimeError` if vLLM asks for another number of rows than it said.
    """
    profiles = _asked.get()
    if profiles is None:
        return None
    _asked.set(None)
    found = profiles()
    if len(found) != rows:
        raise RuntimeError(f"--kprune-head: {rows} rows of logits for {len(found)} of requests")
    return found or None
