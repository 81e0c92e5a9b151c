"""The model whose head is pruned while vLLM makes and loads it; imports nothing of vLLM."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from vllm_kprune.checkpoint.head import HeadRows
from vllm_kprune.errors import KPruneError

__all__ = ["ATTRIBUTE", "Loading", "current", "loading"]

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
