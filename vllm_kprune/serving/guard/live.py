"""The guards of this process, for hooks into vLLM's runners to find; imports nothing.

Hooks are in place in every server, so that one without a guard must pay nothing for them.
"""

from typing import Any
from weakref import WeakValueDictionary

__all__ = ["is_sharded", "keep_slots", "mark_sharded", "slots_of"]

# By the identity of the runner's `all_token_ids`, the one object that both sides have.
_slots: WeakValueDictionary[int, Any] = WeakValueDictionary()
_sharded: list[bool] = [False]


def keep_slots(all_token_ids: Any, slots: Any) -> None:
    """Remember the guarded slots of a runner, for as long as they live."""
    _slots[id(all_token_ids)] = slots


def slots_of(all_token_ids: Any) -> Any:
    """The guarded slots of a runner; None if it has none."""
    return _slots.get(id(all_token_ids))


def mark_sharded() -> None:
    """Each rank of this process's tensor-parallel group samples a part of the batch."""
    _sharded[0] = True


def is_sharded() -> bool:
    """Has `mark_sharded` been called?"""
    return _sharded[0]
