"""Wait for modules to be imported, and wrap functions in them.

`register()` runs in every vLLM process of a machine, before most of vLLM is imported. Nothing is
imported to be wrapped: the model loaders alone take over a second, and an API server never needs
them. Actions must not raise: they run in the middle of somebody else's import.
"""

import functools
import inspect
import sys
from collections.abc import Callable
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

__all__ = ["is_wrapped", "when_imported", "wrap"]

Action = Callable[[ModuleType], None]
_SENTINEL = "__kprune_wraps__"


def wrap(owner: Any, name: str, around: Callable[..., Any]) -> None:
    """Replace `owner.name` by `around(original, …)`, once; static and class methods stay so."""
    # `getattr` would bind a class method and hide that it is one; then it could not be put back as
    # it was.
    found = inspect.getattr_static(owner, name)
    kind = type(found) if isinstance(found, staticmethod | classmethod) else None
    original = found.__func__ if kind else found
    if is_wrapped(original):
        return

    # Also keeps the signature readable: `inspect` follows `__wrapped__`. An async original gives
    # its coroutine through a plain function, which callers may await as before.
    @functools.wraps(original)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        return around(original, *args, **kwargs)

    setattr(wrapped, _SENTINEL, True)
    setattr(owner, name, kind(wrapped) if kind else wrapped)


def is_wrapped(function: Any) -> bool:
    """Is this one of our wrappers?"""
    return hasattr(function, _SENTINEL)


def when_imported(name: str, action: Action) -> None:
    """Call `action(module)` now if module `name` is imported, otherwise when it will be."""
    if module := sys.modules.get(name):
        action(module)
        return
    # One finder for all names, in front of the others, so that it sees every import.
    finder = next((one for one in sys.meta_path if isinstance(one, _ImportHook)), None)
    if finder is None:
        finder = _ImportHook()
        sys.meta_path.insert(0, finder)
    finder.actions.setdefault(name, []).append(action)


class _ImportHook(MetaPathFinder):
    """Lets imports run as usual, and calls the actions that wait for a module once it is there."""

    def __init__(self) -> None:
        self.actions: dict[str, list[Action]] = {}

    def find_spec(
        self, fullname: str, path: Any, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in self.actions:
            return None
        # Not `importlib.util.find_spec`, which would ask this finder again, without end.
        others = (one for one in sys.meta_path if one is not self)
        specs = (one.find_spec(fullname, path, target) for one in others)
        spec = next((spec for spec in specs if spec), None)
        if spec and spec.loader:
            execute = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                execute(module)
                # After the module's own code, so that its names exist; `pop` so that it happens
                # once.
                for action in self.actions.pop(fullname, ()):
                    action(module)

            # On this loader object alone, which belongs to this one module.
            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec
